"""A graph is replayed before the host asks whether the model is still the same; what it then finds out decides."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.runtime.conftest import Make
from tests.runtime.test_graphs import Recorder
from vggt_int8 import VGGTInt8
from vggt_int8.model.call import Call
from vggt_int8.quant.backends import BackendError
from vggt_int8.runtime import runtime
from vggt_int8.runtime.memory import PLANS


@pytest.fixture
def replaying(make_quantized: Make, tiny_images: Tensor, monkeypatch: pytest.MonkeyPatch) -> tuple[VGGTInt8, list[str]]:
    """A model whose calls are replays, and the log of its replays and of the questions asked."""
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    model = make_quantized("int8_dynamic")
    model.set_runtime("on")
    fused, graphs = model.runtime, Recorder()
    monkeypatch.setattr(fused, "_graphs", graphs)
    monkeypatch.setattr(runtime, "cpu_plan", lambda *_: replace(PLANS[0], graph=True))
    asked = fused.why_not

    def why_not(call: Call) -> str | None:
        graphs.log.append("asked")
        return asked(call)

    monkeypatch.setattr(fused, "why_not", why_not)
    for _ in range(2):
        model(tiny_images, check_finite=False)
    assert fused.report().mode == "fused, CUDA graph"
    graphs.log.clear()
    return model, graphs.log


def test_a_call_like_the_last_one_is_replayed_first(replaying: tuple[VGGTInt8, list[str]], tiny_images: Tensor) -> None:
    model, log = replaying
    got = model(tiny_images.flip(0), check_finite=False)
    assert log == ["replay", "asked"]
    assert model.runtime_report().mode == "fused, CUDA graph"
    model.set_runtime("off")
    torch.testing.assert_close(got.depth, model(tiny_images.flip(0)).depth, rtol=1e-4, atol=1e-4)


def test_another_shape_is_asked_about_first(replaying: tuple[VGGTInt8, list[str]], tiny_images: Tensor) -> None:
    model, log = replaying
    model(tiny_images[:1], check_finite=False)
    assert log == ["asked"]
    with pytest.raises(ValueError, match="unknown head"):
        model(tiny_images, heads=("colour",))


def move(model: VGGTInt8) -> None:
    model.aggregator.camera_token.data = model.aggregator.camera_token.data * 2


def replace_module(model: VGGTInt8) -> None:
    old = model.depth_head.norm
    new = nn.LayerNorm(old.normalized_shape, eps=old.eps).eval().requires_grad_(False)
    model.depth_head.norm = new


@pytest.mark.parametrize(("change", "steps"), [(move, ["asked"]), (replace_module, ["replay", "asked"])])
def test_what_was_replayed_before_a_change_was_seen_is_thrown_away(
    replaying: tuple[VGGTInt8, list[str]], tiny_images: Tensor, change: Callable[[VGGTInt8], None], steps: list[str]
) -> None:
    """Memory that may be gone is not replayed from at all; parameters that were replaced are still held."""
    model, log = replaying
    change(model)
    got = model(tiny_images, check_finite=False)
    assert log == steps
    assert model.runtime_report().mode == "fused"
    model.set_runtime("off")
    torch.testing.assert_close(got.depth, model(tiny_images).depth, rtol=1e-4, atol=1e-4)


def test_a_reason_against_it_has_the_last_word(replaying: tuple[VGGTInt8, list[str]], tiny_images: Tensor) -> None:
    model, log = replaying
    model.depth_head.norm.register_forward_pre_hook(lambda *_: None)
    with pytest.raises(BackendError, match=r"depth_head\.norm has a forward hook"):
        model(tiny_images)
    assert log == ["replay", "asked"]
    model.set_runtime("auto")
    model(tiny_images)
    assert model.runtime_report().mode == "plain"


def test_a_replay_without_memory_is_no_end(
    replaying: tuple[VGGTInt8, list[str]], tiny_images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, log = replaying
    replay, failures = model.runtime._graphs.replay, [torch.OutOfMemoryError("CUDA out of memory")]

    def fail_once(*arguments: object) -> dict[str, Tensor] | None:
        if failures:
            raise failures.pop()
        return replay(*arguments)

    monkeypatch.setattr(model.runtime._graphs, "replay", fail_once)
    assert model(tiny_images, check_finite=False).depth is not None
    assert log == ["asked", "replay"]
