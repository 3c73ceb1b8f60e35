"""The table of INT8 layers: which float layer becomes which.

    float layer         INT8 layer           stored                              schemes
    nn.Linear           Int8Linear           weight, weight_scale, bias; if      all: W8A16, W8A8 dynamic,
                                             static also input_scale             W8A8 static, LLM.int8()
    nn.Conv2d           Int8Conv2d           weight, weight_scale, bias          W8A16, whatever is requested
    nn.ConvTranspose2d  Int8ConvTranspose2d  weight, weight_scale, bias          W8A16, whatever is requested

To add a kind, subclass `Int8Layer` (`Int8Storage` if it stores codes) and add a row here.
"""

from torch import nn

from vggt_int8.quant.conv import Int8Conv2d, Int8ConvTranspose2d
from vggt_int8.quant.layer import Int8Layer
from vggt_int8.quant.linear import Int8Linear

INT8_TYPES: dict[type[nn.Module], type[Int8Layer]] = {
    nn.Linear: Int8Linear,
    nn.Conv2d: Int8Conv2d,
    nn.ConvTranspose2d: Int8ConvTranspose2d,
}
WITH_WEIGHTS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)  # what a recipe's groups, rules and patterns match


def int8_type(layer: nn.Module) -> type[Int8Layer]:
    """The INT8 layer type for a float layer. Raises StopIteration if there is none."""
    return next(int8 for floats, int8 in INT8_TYPES.items() if isinstance(layer, floats))
