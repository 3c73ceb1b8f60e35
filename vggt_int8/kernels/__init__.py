"""INT8 arithmetic on plain tensors.

`reference.py` and `reference_attention.py` define every operation in plain PyTorch; `cpu/` and `cuda/` are faster ways
to the same, and `ops.py` takes whichever fits the operands.
"""
