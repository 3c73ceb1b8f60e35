"""`vggt-int8 sensitivity`: what INT8 does to the outputs, one layer, block or group at a time, and a recipe of it.

`scenes` are what is looked at, `units` what can be changed and into what, `measures` how far outputs are from those of
the floating-point model. `measure` makes every change on every scene; it knows a change by its name and its context
manager alone, so changes of another kind need nothing but these. `record` keeps what is finished. `budget` chooses for
every unit, `written` makes a recipe of that, `picture` and `tables` show it.
"""
