"""Loading on CUDA: memory while quantizing a full-size model, exact reloads, backends over one checkpoint, graphs."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.calibrated import calibration_for
from vggt_int8 import VGGT, VGGTConfig, VGGTInt8, compare_model_outputs, estimate_model_size
from vggt_int8.cli.recipes import FACTS
from vggt_int8.quant.backends import BACKENDS, BackendError

pytestmark = pytest.mark.gpu
MB = 1e6


@pytest.fixture(scope="module")
def full_size_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VGGT-1B's shapes with random weights, fp32, 5 GB."""
    folder = tmp_path_factory.mktemp("vggt_1b")
    with torch.device("cuda"):
        torch.manual_seed(0)
        model = VGGT(VGGTConfig())
    model.save_pretrained(folder)
    del model
    torch.cuda.empty_cache()
    return folder


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_quantizing_on_the_gpu_needs_little_more_than_the_int8_model(
    full_size_checkpoint: Path, dtype: torch.dtype
) -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = VGGTInt8.from_pretrained(full_size_checkpoint, recipe="int8_dynamic", device_map="cuda", dtype=dtype)
    peak = torch.cuda.max_memory_allocated() - before
    size = estimate_model_size(model)["total_mb"] * MB
    print(f"peak {peak / MB:.0f} MB, model {size / MB:.0f} MB ({dtype})")
    assert peak <= size + 200 * MB


def test_calibration_at_full_size_takes_the_floats_and_one_call(full_size_checkpoint: Path) -> None:
    """A scene of ten frames; the limit is that of a card of 24 GB."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    images = torch.rand(10, 3, 392, 518, generator=torch.Generator().manual_seed(0))
    model = VGGTInt8.from_pretrained(
        full_size_checkpoint, recipe="int8_static_rotated", calibration=images, device_map="cuda"
    )
    peak = torch.cuda.max_memory_allocated() - before
    print(f"peak {peak / MB:.0f} MB")
    assert peak <= 24e9
    assert len(model.config.quantization_config.calibration["ranges"]) == 288


def test_a_full_size_checkpoint_reloads_exactly(full_size_checkpoint: Path, tmp_path: Path) -> None:
    model = VGGTInt8.from_pretrained(full_size_checkpoint, recipe="int8_dynamic", device_map="cuda")
    assert next(model.parameters()).dtype == torch.float16
    model.save_pretrained(tmp_path / "int8")
    stored = sum(file.stat().st_size for file in (tmp_path / "int8").glob("*.safetensors"))
    assert stored <= 1.30e9
    again = VGGTInt8.from_pretrained(tmp_path / "int8", device_map="cuda")
    state, expected = again.state_dict(), model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    images = torch.rand(2, 3, 392, 518, device="cuda")
    with torch.no_grad():
        first, second = model(images), again(images)
    assert all(torch.equal(first[name], second[name]) for name in first)


RECIPES = ["int8_dynamic", "int8_rotated", "int8_static", "int8_static_rotated", "int8_weight_only", "llm_int8", "fp16"]


@pytest.mark.filterwarnings("ignore:calibrated with")
@pytest.mark.parametrize("recipe", RECIPES)
def test_one_checkpoint_under_every_backend(
    tiny_checkpoint: Path, tiny_images: Tensor, tiny_points: Tensor, tmp_path: Path, recipe: str
) -> None:
    calibration = calibration_for(recipe, tiny_images)
    VGGTInt8.from_pretrained(tiny_checkpoint, recipe=recipe, **calibration).save_pretrained(tmp_path / recipe)
    reference = VGGTInt8.from_pretrained(tmp_path / recipe, dtype=torch.float32)
    ran = []
    for backend in ("auto", *BACKENDS):
        try:
            model = VGGTInt8.from_pretrained(tmp_path / recipe, backend=backend, device_map="cuda")
        except BackendError:
            continue
        ran.append(backend)
        differences = compare_model_outputs(reference, model, tiny_images, tiny_points)
        for name in ("pose_enc", "depth", "world_points"):
            assert differences[name]["relative"] < 0.05, f"{backend}: {name} {differences[name]}"
    assert ran == ["auto", *FACTS[recipe][1]]


def test_int8_model_replays_as_a_cuda_graph(tiny_checkpoint: Path, tiny_images: Tensor) -> None:
    model = VGGTInt8.from_pretrained(tiny_checkpoint, recipe="int8_weight_only", device_map="cuda")
    images = tiny_images.cuda()
    with torch.no_grad():
        expected = model(images).depth.clone()
        graph = torch.cuda.CUDAGraph()
        static = images.clone()
        with torch.cuda.graph(graph):
            output = model(static)
        static.copy_(images)
        graph.replay()
    torch.testing.assert_close(output.depth, expected)
