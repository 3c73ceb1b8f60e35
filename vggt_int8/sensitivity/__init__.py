"""`vggt-int8 sensitivity`: measure what quantizing one layer, block or group does to the outputs, and write a recipe.

`scenes` provides the images, `units` the layers that can be changed and their options, `measures` the errors relative
to the floating-point model. `measure` applies every change to every scene; it only knows a change's name and its
context manager, so other kinds of changes need nothing else. `record` stores finished measurements. `budget` chooses an
option for every unit, `written` turns the choice into a recipe, and `picture` and `tables` show the results.
"""
