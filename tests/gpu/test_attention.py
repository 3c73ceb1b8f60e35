"""INT8 attention of a whole model on a GPU: the Triton kernel, fused and captured, against the definition in fp32."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vggt_int8 import VGGTInt8, load_recipe
from vggt_int8.difference import relative_error

pytestmark = pytest.mark.gpu
FIELDS = ("pose_enc", "depth", "world_points", "depth_conf", "world_points_conf")


@pytest.mark.parametrize("name", ["int8_dynamic", "int8_weight_only"])
def test_the_kernel_is_the_definition(tiny_checkpoint: Path, tiny_images: Tensor, name: str) -> None:
    recipe = replace(load_recipe(name), attention="int8")
    exact = VGGTInt8.from_pretrained(tiny_checkpoint, recipe=recipe, backend="reference")(tiny_images)
    plain = VGGTInt8.from_pretrained(tiny_checkpoint, recipe=name, backend="reference")(tiny_images)
    model = VGGTInt8.from_pretrained(tiny_checkpoint, recipe=recipe, backend="native", device_map="cuda")
    float_model = VGGTInt8.from_pretrained(tiny_checkpoint, recipe=name, backend="native", device_map="cuda")
    rows = [row for row in model.quantization_report() if row.scheme == "INT8 QK"]
    assert {row.kernel for row in rows} == {"Triton attention, int8 scores"}
    images = tiny_images.cuda()
    for mode in ("fused", "fused, CUDA graph", "fused, CUDA graph", "plain"):
        if mode == "plain":
            model.set_runtime("off")
        got, other = model(images), float_model(images)
        assert model.runtime_report().mode == mode
        for field in FIELDS:
            error = relative_error(got[field], exact[field])
            assert error < 1.3 * relative_error(other[field], plain[field]) + 5e-3, (mode, field)
            assert relative_error(got[field], other[field]) > 1e-5, "codes must be in use"


def test_backends_of_libraries_use_the_kernel_too(tiny_checkpoint: Path, tiny_images: Tensor) -> None:
    recipe = replace(load_recipe("int8_dynamic"), attention="int8")
    results = {}
    for backend in ("native", "torchao", "bitsandbytes", "reference"):
        model = VGGTInt8.from_pretrained(tiny_checkpoint, recipe=recipe, backend=backend, device_map="cuda")
        results[backend] = model.set_runtime("off") or model(tiny_images.cuda()).depth
    assert all(relative_error(depth, results["reference"]) < 0.02 for depth in results.values())
    assert all(depth.dtype == torch.float32 for depth in results.values())
