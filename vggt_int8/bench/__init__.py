"""Time, memory and error of VGGT's whole forward pass, for many ways to run it, side by side in one run.

`source` says which network, `variants` which ways to run it (`baselines` has those without our INT8), `cost` what the
work is and what this machine can do, `sweep` measures one row per variant and number of frames, `records` keeps them
as JSON lines, `table` and `plot` turn files of them into the README's table and figure. `vggt-int8 bench` is the front.
"""
