"""Requests that do not fit a good checkpoint, or this machine: the message says what does not fit, and the way out."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.warm import python
from vggt_int8 import BackendError, CheckpointError, RecipeError, VGGTInt8, available_recipes


def request(**arguments: Any) -> dict[str, Any]:
    return arguments


# A request that does not fit a good checkpoint. {int8} and {float} are folders with one.
REQUESTS: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    (
        "{int8}",
        request(recipe="int8_dynamic"),
        CheckpointError,
        "quantized already, by recipe 'int8_dynamic': load it without recipe=",
    ),
    ("{int8}", request(recipe="fp16"), CheckpointError, "quantized already"),
    (
        "{float}",
        request(recipe="int4"),
        RecipeError,
        f"there is no recipe 'int4'. Shipped: {', '.join(available_recipes())}",
    ),
    ("{float}", request(recipe="none.toml"), RecipeError, r"cannot read the recipe none\.toml"),
    ("{float}", request(recipe="int8_dynamic", backend="cutlass"), BackendError, "there is no backend 'cutlass'"),
    (
        "{float}",
        request(backend="native"),
        BackendError,
        "backend 'native' runs INT8 layers, but .* has none: give a recipe",
    ),
    ("{int8}/none", request(), CheckpointError, "there is no folder '.*none'"),
    ("./none", request(), CheckpointError, "there is no folder './none'"),
    ("{int8}/config.json", request(), CheckpointError, r"config\.json is a file of unknown kind"),
]


@pytest.mark.parametrize(("source", "arguments", "kind", "message"), REQUESTS)
def test_a_request_that_does_not_fit(
    bare_checkpoint: Path,
    bare_int8: Path,
    source: str,
    arguments: dict[str, Any],
    kind: type[Exception],
    message: str,
) -> None:
    source = source.replace("{int8}", str(bare_int8)).replace("{float}", str(bare_checkpoint))
    with pytest.raises(kind, match=message):
        VGGTInt8.from_pretrained(source, **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("source", ["float", "int8"])
@pytest.mark.parametrize(
    "device_map",
    [
        "cuda",
        "cuda:0",
        0,
        torch.device("cuda"),
        {"": "cuda"},
        {"": 0},
        {"": torch.device("cuda", 0)},
        {"aggregator": "cpu", "camera_head": 0},
    ],
    ids=str,
)
def test_cuda_without_cuda(bare_checkpoint: Path, bare_int8: Path, source: str, device_map: Any) -> None:
    folder, recipe = (bare_checkpoint, "int8_dynamic") if source == "float" else (bare_int8, None)
    with pytest.raises(BackendError, match=r"asks for CUDA, but torch .* sees no CUDA device.*device_map='cpu'"):
        VGGTInt8.from_pretrained(folder, recipe=recipe, device_map=device_map)


@pytest.mark.slow
def test_no_network_and_not_cached(tmp_path: Path) -> None:
    code = """
from vggt_int8 import CheckpointError, VGGTInt8
try:
    VGGTInt8.from_pretrained("someone/VGGT-1B-quantized.w8a8")
except CheckpointError as error:
    print(error)
"""
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    process = python("-c", code, env=environment)
    assert process.returncode == 0, process.stderr
    assert "cannot get the config.json of 'someone/VGGT-1B-quantized.w8a8'" in process.stdout
    assert "the Hub is not asked (HF_HUB_OFFLINE or local_files_only)" in process.stdout
    assert "'embedded' names the small model inside this package" in process.stdout
