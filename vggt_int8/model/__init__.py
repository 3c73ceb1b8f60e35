"""The network. It knows nothing of quantization: see `vggt_int8.quant` and `vggt_int8.pretrained`.

`VGGT` and `VGGTOutput` are loaded when they are first used: the config alone is cheap, while the model brings all of
transformers' model code along.
"""

from typing import TYPE_CHECKING, Any

from vggt_int8.model.config import VGGTConfig

if TYPE_CHECKING:
    from vggt_int8.model.vggt import VGGT, VGGTOutput

__all__ = ["VGGT", "VGGTConfig", "VGGTOutput"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vggt_int8.model import vggt

    return getattr(vggt, name)
