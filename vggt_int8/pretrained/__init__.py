"""Where the network and quantization meet: `VGGTInt8`, and its loading and saving through transformers.

Importing this package registers the quantizer ("vggt_int8") and the Auto classes.
"""

from vggt_int8.pretrained.in_place import quantize
from vggt_int8.pretrained.model import VGGTInt8, VGGTOmegaInt8
from vggt_int8.saves.errors import CheckpointError

__all__ = ["CheckpointError", "VGGTInt8", "VGGTOmegaInt8", "quantize"]
