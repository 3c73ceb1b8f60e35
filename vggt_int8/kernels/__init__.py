"""INT8 arithmetic on plain tensors.

`reference.py` and `reference_attention.py` define every operation in plain PyTorch; `cpu/` and `cuda/` implement the
same operations for speed, and `ops.py` dispatches on the operands.
"""
