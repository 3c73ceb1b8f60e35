"""Descriptors of frames: the mean encoded patch, the same from the plain and the fused network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vggt_int8 import VGGTInt8


def test_plain_and_fused_descriptors_are_the_mean_patch(make_bare: Callable[[], VGGTInt8], tiny_images: Tensor) -> None:
    model = make_bare().eval()
    with torch.inference_mode():
        wanted = model.aggregator.embed(tiny_images[None])[:, :, model.aggregator.num_special :].mean(2)
        for mode in ("off", "on"):
            model.set_runtime(mode)
            found = model(tiny_images, heads=("camera",), descriptors=True).descriptor
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
            assert model(tiny_images, heads=("camera",)).descriptor is None
