"""Checkpoints as files: written whole or not at all, and known for a mixture of two saves when they are read.

Nothing here knows the network or quantization, so that the plain network and the INT8 one save and load alike.
"""

from vggt_int8.saves.errors import CheckpointError

__all__ = ["CheckpointError"]
