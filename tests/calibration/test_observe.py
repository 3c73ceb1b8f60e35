"""What observers are shown, against hooks of this test's own; and that a network is left as it was."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vggt_int8 import VGGTInt8
from vggt_int8.calibration import CalibrationError, Observer, observe
from vggt_int8.calibration.observers import MeanSquaredError, MinMax, observer_for
from vggt_int8.kernels.reference import rotate
from vggt_int8.recipe import Scheme
from vggt_int8.recipe.scheme import OBSERVERS

LAYER = "aggregator.global_blocks.1.mlp.fc1"


class Keeper(Observer):
    """Keeps what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def _see(self, x: Tensor) -> None:
        self.seen.append(x.clone())

    def range(self) -> float:
        return self.absmax


def inputs_of(model: nn.Module, name: str, calls: Tensor) -> Tensor:
    """[calls, F, P, K], by a hook of another kind."""
    seen: list[Tensor] = []

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(args[0])

    handle = model.get_submodule(name).register_forward_hook(hook)
    with torch.no_grad():
        for call in calls:
            model(call)
    handle.remove()
    return torch.stack(seen)


class Chain(nn.Module):
    """Linears one behind the other; inputs: of each, as long as somebody else keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 64) for _ in range(4)])
        self.inputs: list[weakref.ref[Tensor]] = []
        self.alive: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
            self.inputs.append(weakref.ref(x))
            self.alive.append(sum(reference() is not None for reference in self.inputs))
        return x


@pytest.mark.parametrize("kind", OBSERVERS)
@pytest.mark.parametrize("rotation", [0, 64])
def test_nothing_of_an_input_is_kept_beyond_its_layer(kind: str, rotation: int) -> None:
    """Nor does what is remembered grow with what is seen."""
    model, x = Chain(), torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    schemes = {f"layers.{i}": Scheme("static", rotation=rotation) for i in range(len(model.layers))}
    sizes = []
    for inputs in ([x], [x] * 3):
        model.alive.clear()
        found = observe(model, inputs, schemes, lambda name: observer_for(kind, lambda: torch.ones(8, 64), rotation))
        kept = [value for own in found.values() for observer in own for value in vars(observer).values()]
        sizes.append(sum(value.nbytes for value in kept if isinstance(value, Tensor)))
        assert max(model.alive) == 1, "the one that the next layer reads"
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("rotation", [0, 8])
@pytest.mark.parametrize("special", [0, 5])
def test_observers_see_every_input_rotated_and_by_kind(
    make_bare: Callable[[], VGGTInt8], scenes: Tensor, rotation: int, special: int
) -> None:
    model = make_bare()
    want = inputs_of(model, LAYER, scenes)
    group = Scheme("static", rotation=rotation).rotation_of(want.shape[-1])
    scheme = Scheme("static", rotation=rotation, special_tokens=special)
    seen: Any = observe(model, list(scenes), {LAYER: scheme}, lambda name: Keeper)
    kinds = [want[:, :, :special], want[:, :, special:]] if special else [want]
    assert len(seen[LAYER]) == len(kinds)
    for observer, tokens in zip(seen[LAYER], kinds, strict=True):
        rows = tokens.reshape(-1, want.shape[-1])
        got = torch.cat(observer.seen)
        assert torch.equal(got, rotate(rows, group) if group else rows)
        assert observer.rows == len(rows)
        assert observer.range() == got.abs().max().item()


def test_a_long_input_is_seen_in_parts(
    make_bare: Callable[[], VGGTInt8], scenes: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: Any = observe(make_bare(), list(scenes), {LAYER: Scheme("static")}, lambda name: Keeper)
    monkeypatch.setattr("vggt_int8.calibration.watch._AT_ONCE", 90)
    parts: Any = observe(make_bare(), list(scenes), {LAYER: Scheme("static")}, lambda name: Keeper)
    assert len(parts[LAYER][0].seen) > 5 * len(whole[LAYER][0].seen)
    assert torch.equal(torch.cat(parts[LAYER][0].seen), torch.cat(whole[LAYER][0].seen))


def test_passes_and_progress(make_bare: Callable[[], VGGTInt8], scenes: Tensor) -> None:
    done: list[tuple[int, int]] = []
    model = make_bare()
    width = model.get_submodule(LAYER).in_features
    schemes = {LAYER: Scheme("static"), "aggregator.frame_blocks.0.attn.qkv": Scheme("static")}
    makers: dict[str, Any] = dict.fromkeys(schemes, Keeper) | {LAYER: lambda: MeanSquaredError(torch.ones(width))}
    seen: Any = observe(model, list(scenes), schemes, makers.__getitem__, on_call=lambda *at: done.append(at))
    assert done == [(i, 6) for i in range(1, 7)]
    (keeper,) = seen["aggregator.frame_blocks.0.attn.qkv"]
    assert len(keeper.seen) == 3, "an observer of one pass does not see the second"
    assert seen[LAYER][0].errors.min() > 0


def test_the_model_is_left_as_it_was(make_bare: Callable[[], VGGTInt8], scenes: Tensor) -> None:
    model = make_bare()
    model.train()
    model.aggregator.patch_embed.eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for fails in (False, True):
        bad = [*scenes, "no tensor"] if fails else list(scenes)
        try:
            observe(model, bad, {LAYER: Scheme("static")}, lambda name: MinMax)  # type: ignore[arg-type]
            assert not fails
        except TypeError:
            assert fails
        assert [module.training for module in model.modules()] == modes
        assert not any(module._forward_pre_hooks for module in model.modules()), "a hook was left behind"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_was_not_seen_is_named(make_tiny: Callable[[], VGGTInt8], scenes: Tensor) -> None:
    static = Scheme("static")
    with pytest.raises(CalibrationError, match="no image was given"):
        observe(make_tiny(), [], {LAYER: static}, lambda name: MinMax)
    never = "track_head.tracker.ffeat_updater.0"
    with pytest.raises(CalibrationError, match=rf"{never}: the calibration images never reached it"):
        observe(make_tiny(), list(scenes), {LAYER: static, never: static}, lambda name: MinMax)
    tokens = 10_000
    with pytest.raises(CalibrationError, match=rf"{LAYER}: the calibration images showed it no patch token"):
        observe(make_tiny(), list(scenes), {LAYER: Scheme("static", special_tokens=tokens)}, lambda name: MinMax)


def test_ranges_that_are_none(make_bare: Callable[[], VGGTInt8], scenes: Tensor) -> None:
    for value, message in ((0.0, "its inputs were nothing but zeros"), (float("nan"), "its input holds NaN or inf")):
        model = make_bare()
        with torch.no_grad():
            norm = model.aggregator.global_blocks[1].norm2
            norm.weight.fill_(value)
            norm.bias.fill_(value)
        with pytest.raises(CalibrationError, match=rf"{LAYER}: {message}"):
            observe(model, list(scenes), {LAYER: Scheme("static")}, lambda name: MinMax)
        assert not model.get_submodule(LAYER)._forward_pre_hooks
