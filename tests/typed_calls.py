"""What a type checker knows of the calls that users write: `mypy` reads this file with the package.

A call that it must refuse has the comment that allows this error: `warn_unused_ignores` reports one that it accepts.
"""

from typing import assert_type

from torch import Tensor, nn

from vggt_int8 import VGGT, VGGTInt8, VGGTOutput, quantize
from vggt_int8.runtime import Runtime


def use(model: VGGTInt8, plain: VGGT, images: Tensor) -> None:
    assert_type(model(images), VGGTOutput)
    assert_type(model(images, query_points=images, heads=("depth",), check_finite=False), VGGTOutput)
    assert_type(plain(images, frames_chunk_size=None), VGGTOutput)
    assert_type(Runtime(model)(images), VGGTOutput)
    assert_type(model(images).depth, Tensor | None)
    assert_type(quantize(plain), VGGT)
    assert_type(quantize(nn.Sequential()), nn.Sequential)
    plain(images, check_finite=False)  # type: ignore[call-arg]
    model("images")  # type: ignore[arg-type]
