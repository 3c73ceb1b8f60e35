"""The fused network on a CPU, as a user gets it: by itself, on the native backend, against the reference backend."""

import pytest
import torch
from torch import Tensor

from tests.codes import FACTOR
from tests.runtime.conftest import Make
from vggt_int8.difference import relative_error
from vggt_int8.kernels.cpu import conv
from vggt_int8.runtime import Runtime, convolution, runtime

OUTPUTS = ("pose_enc", "depth", "depth_conf", "world_points", "world_points_conf")
# Relative. A convolution rounds its input to 1.6e-5 of the largest value, uniformly, so by 1e-5 of it on average; some
# 20 of them follow one another, whose errors are independent: 5e-5, and twice that.
INTEGER_CONVOLUTIONS = 1e-4


@pytest.fixture
def float_convolutions() -> None:
    """In place of the one for the folder: here convolutions run as this CPU runs them."""


def images_of(frames: int, height: int, width: int) -> Tensor:
    return torch.rand(frames, 3, height, width, generator=torch.Generator().manual_seed(frames))


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 42, 56), (1, 14, 14), (5, 56, 42), (8, 28, 28)])
def test_native_is_the_reference(make_quantized: Make, frames: int, height: int, width: int) -> None:
    images = images_of(frames, height, width)
    reference, native = make_quantized("int8_weight_only"), make_quantized("int8_weight_only")
    native.set_backend("native")
    want, got = reference(images), native(images)
    assert (reference.runtime_report().mode, native.runtime_report().mode) == ("plain", "fused")
    for name in OUTPUTS:
        assert relative_error(got[name], want[name]) < INTEGER_CONVOLUTIONS, name
        assert (got[name] - want[name]).abs().max() < 2 * INTEGER_CONVOLUTIONS * want[name].abs().max(), name


@pytest.mark.slow
def test_native_loses_no_more_than_the_reference(make_quantized: Make) -> None:
    """Against the network before quantization. Both round codes on a boundary by chance, so over several scenes."""
    exact, reference, native = (make_quantized(recipe) for recipe in ("none", "int8_dynamic", "int8_dynamic"))
    native.set_backend("native")
    lost: dict[str, list[tuple[float, float]]] = {name: [] for name in OUTPUTS}
    apart: dict[str, float] = {}
    for frames, height, width in [(1, 42, 56), (1, 14, 14), (5, 56, 42), (8, 28, 28), (2, 42, 42), (3, 28, 56)]:
        images = images_of(frames, height, width)
        want, plain, fused = exact(images), reference(images), native(images)
        assert native.runtime_report().mode == "fused"
        for name in OUTPUTS:
            lost[name].append((relative_error(plain[name], want[name]), relative_error(fused[name], want[name])))
            apart[name] = max(apart.get(name, 0.0), relative_error(fused[name], plain[name]))
    for name, pairs in lost.items():
        assert apart[name] < FACTOR * max(error for error, _ in pairs) + INTEGER_CONVOLUTIONS, (name, pairs)
        # Two sums of squares of 180 numbers, 9 for the pose of each of 20 frames, scatter by a tenth; of maps by less.
        by_reference, by_native = (sum(error**2 for error in column) ** 0.5 for column in zip(*pairs, strict=True))
        assert by_native < 1.4 * by_reference + INTEGER_CONVOLUTIONS, (name, pairs)


@pytest.mark.parametrize(("dtype", "device"), [(torch.float64, "cpu"), (torch.float16, "cpu"), (torch.float32, "meta")])
def test_defaults_of_the_process_do_not_matter(make_quantized: Make, dtype: torch.dtype, device: str) -> None:
    model, images = make_quantized("int8_dynamic"), images_of(2, 42, 56)
    model.set_backend("native")
    want = model(images)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            got = model(images)
    finally:
        torch.set_default_dtype(torch.float32)
    assert model.runtime_report().mode == "fused"
    for name in OUTPUTS:
        assert got[name].dtype == torch.float32
        assert torch.equal(got[name], want[name]), name


def test_convolutions_run_in_integers(make_quantized: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    if not conv.int8_conv_is_there():
        pytest.skip("there are no compiled kernels here")
    model, images = make_quantized("int8_weight_only"), images_of(2, 42, 56)
    got = Runtime(model)(images, heads=("depth",)).depth
    monkeypatch.setattr(convolution, "int8_conv_is_there", lambda: False)
    floats = Runtime(model)(images, heads=("depth",)).depth
    assert 1e-7 < relative_error(got, floats) < INTEGER_CONVOLUTIONS
    half = make_quantized("int8_weight_only", torch.bfloat16)
    monkeypatch.setattr(convolution, "int8_conv_is_there", lambda: True)
    monkeypatch.setattr(convolution, "int8_conv2d", None)  # which is for fp32 alone
    assert Runtime(half)(images, heads=("depth",)).depth.isfinite().all()


def test_training_and_other_backends_keep_the_networks_own_modules(make_quantized: Make) -> None:
    model, images = make_quantized("int8_dynamic"), images_of(1, 14, 14)
    model(images)
    assert model.runtime_report().reason == "the INT8 layers do not run on the native backend"
    plain = make_quantized("none")
    plain(images)
    assert plain.runtime_report().reason == "the model has no INT8 linears"
    model.set_backend("native")
    images.requires_grad_()
    model(images).depth.sum().backward()
    assert "gradients" in model.runtime_report().reason
    assert images.grad is not None


def test_surplus_memory_is_given_back_after_a_call(make_quantized: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    network = runtime.Runtime._run_within_memory
    monkeypatch.setattr(runtime.Runtime, "_run_within_memory", lambda *a: calls.append("network") or network(*a))
    monkeypatch.setattr(runtime, "give_back_surplus", lambda: calls.append("memory"))
    model = make_quantized("int8_dynamic")
    Runtime(model)(images_of(1, 14, 14))
    assert calls == ["network", "memory"]


@pytest.mark.slow
def test_surplus_memory_is_given_back_after_plain_calls(make_quantized: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(runtime, "give_back_surplus", lambda: calls.append("memory"))
    model, images = make_quantized("int8_dynamic"), images_of(1, 14, 14)
    model.set_runtime("off")
    model(images)
    assert calls == ["memory"]
    torch.jit.trace(lambda x: model(x).depth, (images,), check_trace=False)
    assert calls == ["memory"], "what is recorded is not this process's call"
