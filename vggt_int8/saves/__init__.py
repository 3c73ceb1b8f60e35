"""Checkpoints as files: written completely or not at all, and checked for a mixture of two saves when they are read.

Nothing here knows the network or quantization, so the plain network and the INT8 one save and load alike.
"""

from vggt_int8.saves.errors import CheckpointError

__all__ = ["CheckpointError"]
