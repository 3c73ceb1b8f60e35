"""State dicts: codes never become floats, floats never codes, and what is refused changes nothing."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vggt_int8 import Recipe, VGGTInt8, quantize
from vggt_int8.quant import Int8Conv2d, Int8ConvTranspose2d, Int8Linear

ALL = Recipe(weights="int8", activations="dynamic", include=[".*"])
STRICT = pytest.mark.parametrize("strict", [True, False])


def network() -> nn.Sequential:
    """A module that is none of ours."""
    torch.manual_seed(0)
    return nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 24), nn.Sequential(nn.Linear(24, 8))).eval()


def layers() -> list[tuple[nn.Module, nn.Module]]:
    """A float layer and its INT8 one, of each kind."""
    torch.manual_seed(0)
    linear, conv, transposed = nn.Linear(6, 4), nn.Conv2d(3, 5, 3), nn.ConvTranspose2d(3, 5, 2)
    return [
        (linear, Int8Linear.from_linear(linear)),
        (conv, Int8Conv2d.from_conv(conv)),
        (transposed, Int8ConvTranspose2d.from_conv(transposed)),
    ]


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def assert_unchanged(module: nn.Module, before: dict[str, Tensor]) -> None:
    after = module.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name


@STRICT
@pytest.mark.parametrize("assign", [False, True])
def test_floats_over_codes_are_refused_before_anything_is_copied(strict: bool, assign: bool) -> None:
    floats, model = network(), quantize(network(), ALL)
    floats[0].weight.data.fill_(7.0)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match=r"^1\.weight is float32 where INT8 codes belong: .*quantize that"):
        model.load_state_dict(floats.state_dict(), strict=strict, assign=assign)
    assert_unchanged(model, before)


@STRICT
def test_the_layer_is_named_from_the_root(strict: bool) -> None:
    outer = nn.ModuleDict({"net": quantize(network(), ALL)})
    with pytest.raises(RuntimeError, match=r"^net\.1\.weight is float16 where"):
        outer.load_state_dict(nn.ModuleDict({"net": network()}).half().state_dict(), strict=strict)


@STRICT
@pytest.mark.parametrize("kind", range(3))
def test_a_layer_standing_alone(strict: bool, kind: int) -> None:
    floats, layer = layers()[kind]
    before = snapshot(layer)
    with pytest.raises(RuntimeError, match=r"^weight is float32 where INT8 codes belong"):
        layer.load_state_dict(floats.state_dict(), strict=strict)
    assert_unchanged(layer, before)


@STRICT
@pytest.mark.parametrize("kind", range(3))
def test_codes_over_floats_are_refused(strict: bool, kind: int) -> None:
    floats, layer = layers()[kind]
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        floats.load_state_dict(layer.state_dict(), strict=strict)


@STRICT
def test_a_vggt(make_tiny: Callable[[], VGGTInt8], strict: bool) -> None:
    floats, model = make_tiny(), quantize(make_tiny(), "int8_dynamic")
    before = snapshot(model)
    first = "aggregator.patch_embed.blocks.0.attn.qkv.weight"
    with pytest.raises(RuntimeError, match=rf"^{first} is float32 where INT8 codes belong"):
        model.load_state_dict({name: tensor + 1 for name, tensor in floats.state_dict().items()}, strict=strict)
    assert_unchanged(model, before)
    with pytest.raises(RuntimeError, match="size mismatch for aggregator"):
        floats.load_state_dict(model.state_dict(), strict=strict)


@pytest.mark.parametrize("kind", range(3))
def test_a_state_dict_of_format_1_loads(kind: int) -> None:
    _, layer = layers()[kind]
    state = snapshot(layer)
    state["weight"] = state["weight"][0]
    other = copy.deepcopy(layer)
    other.weight.data.zero_()
    other.load_state_dict(state)
    assert_unchanged(other, layer.state_dict())
    other.load_state_dict(state, assign=True)
    assert_unchanged(other, layer.state_dict())


def edit(**changes: Any) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Of a layer's state: `None` takes a tensor out, a function makes another of it."""

    def apply(state: dict[str, Tensor]) -> dict[str, Tensor]:
        state = copy.deepcopy(state)
        for name, change in changes.items():
            tensor = state.pop(name)
            if change is not None:
                state[name] = change(tensor)
        return state

    return apply


BAD = [
    (edit(weight_scale=None), "weight_scale is missing beside weight: codes and their scales belong together"),
    (edit(weight=None), "weight is missing beside weight_scale"),
    (edit(weight=lambda t: t.float()), "weight is float32 where INT8 codes belong"),
    (edit(weight=lambda t: t.to(torch.uint8)), "weight is uint8 where INT8 codes belong"),
    (edit(weight=lambda t: t.index_fill(2, torch.tensor([1]), -128)), "weight holds codes of -128"),
    (edit(weight=lambda t: t * 0), "weight holds 4 channels of zeros whose scale is not 1: the state dict"),
    (edit(weight_scale=lambda t: t * 0), "weight_scale holds scales that are not positive"),
    (edit(weight_scale=lambda t: t * torch.nan), "weight_scale holds NaN or inf"),
    (edit(weight_scale=lambda t: t.half()), "weight_scale is float16, but scales must be float32"),
    (edit(weight_scale=lambda t: t * 0 + 1e-40), "weight_scale holds denormal scales"),
    (edit(weight_scale=lambda t: t * 0 + 1e37), "weight_scale holds scales of up to 1e\\+37"),
    (edit(bias=lambda t: t.float() * 1e30), "bias holds .*fp16"),
]


@STRICT
@pytest.mark.parametrize(("change", "message"), BAD, ids=[message for _, message in BAD])
def test_a_bad_state(strict: bool, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str) -> None:
    layer = Int8Linear.from_linear(nn.Linear(6, 4))
    before = snapshot(layer)
    with pytest.raises(RuntimeError, match=rf"^{message}"):
        layer.load_state_dict(change(before), strict=strict)
    assert_unchanged(layer, before)


def test_a_part_of_a_state_dict_still_loads_where_asked() -> None:
    model = quantize(network(), ALL)
    before = snapshot(model)
    found = model.load_state_dict({"0.weight": torch.full((16,), 3.0)}, strict=False)
    assert "1.weight" in found.missing_keys
    assert_unchanged(model, {**before, "0.weight": torch.full((16,), 3.0)})


def test_copies_keep_refusing() -> None:
    model = copy.deepcopy(quantize(network(), ALL))
    with pytest.raises(RuntimeError, match=r"^1\.weight is float32"):
        model.load_state_dict(network().state_dict(), strict=False)


def test_a_memory_format_for_convolutions_leaves_the_shape() -> None:
    model = nn.Sequential(layers()[1][1])
    before = snapshot(model)
    assert_unchanged(model.to(memory_format=torch.channels_last), before)
