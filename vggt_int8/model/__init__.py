"""The network. It knows nothing of quantization: see `vggt_int8.quant` and `vggt_int8.pretrained`."""

from vggt_int8.model.config import VGGTConfig
from vggt_int8.model.vggt import VGGT, VGGTOutput

__all__ = ["VGGT", "VGGTConfig", "VGGTOutput"]
