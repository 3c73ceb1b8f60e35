"""Time, memory and error of VGGT's whole forward pass, for many ways to run it, side by side in one run.

`source` defines the network, `variants` the ways to run it (`baselines` has those without our INT8), `cost` the amount
of work and the machine's limits; `sweep` measures one row per variant and number of frames, `records` stores them as
JSON lines, `table` and `plot` turn these files into the README's table and figure. The command is `vggt-int8 bench`.
"""
