"""INT8 arithmetic on plain tensors.

`reference.py` defines every operation in plain PyTorch; the files beside it are faster ways to the same.
"""
