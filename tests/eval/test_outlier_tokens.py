"""The variant with outlier tokens: outliers of the published size, on special tokens, in nearly the same function."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggt_int8.difference import relative_error
from vggt_int8.eval.outlier_tokens import linear_inputs, with_outlier_tokens
from vggt_int8.model import VGGT
from vggt_int8.scenes import render_scenes, scene_seeds

FRAME, SPECIAL = "aggregator.frame_blocks.0", 5


def images(seed: int, scenes: int = 1) -> Tensor:
    return torch.rand(scenes, 3, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def hard(strong_model: VGGT) -> VGGT:
    return with_outlier_tokens(strong_model, 0, [images(1), images(2)])


def readers(model: VGGT, kind: str) -> list[str]:
    return [name for name, module in model.aggregator.named_modules(prefix="aggregator") if name.endswith(kind)]


def changed_units(model: VGGT, hard: VGGT, block: str) -> list[int]:
    """The two hidden units that say something else: their bias of fc1, which no channel is scaled by, has changed."""
    before, after = (network.get_submodule(block).mlp.fc1.bias for network in (model, hard))
    return (before != after).nonzero().flatten().tolist()


@pytest.mark.slow
def test_special_tokens_alone_get_outliers_of_the_published_size(strong_model: VGGT, hard: VGGT) -> None:
    names = readers(hard, "mlp.fc2")
    before, after = (linear_inputs(network, names, [images(1), images(2)]) for network in (strong_model, hard))
    peaks = {name: inputs.special.abs().max().item() for name, inputs in after.items()}
    assert peaks.pop("aggregator.patch_embed.blocks.0.mlp.fc2") == pytest.approx(142, rel=0.1)
    # Two layers stand for 24, so block 10 of those is the first one here, as block 2 of the encoder is.
    first = [f"aggregator.{part}_blocks.0.mlp.fc2" for part in ("frame", "global")]
    assert [peaks.pop(name) for name in first] == pytest.approx([14, 14], rel=0.1)
    assert [peaks[f"aggregator.{part}_blocks.1.mlp.fc2"] for part in ("frame", "global")] == pytest.approx(
        [9, 9], rel=0.1
    )
    for name in names:
        assert after[name].patches.abs().max() < 1.5 * before[name].patches.abs().max() + 0.2, name


def test_inputs_of_the_aggregator_reach_the_published_range(strong_model: VGGT, hard: VGGT) -> None:
    for kind, low, high in (("attn.qkv", 11, 23), ("mlp.fc1", 12, 26)):
        names = [name for name in readers(hard, kind) if "blocks" in name and "patch_embed" not in name]
        for name, inputs in linear_inputs(hard, names, [images(1), images(2)]).items():
            assert low < inputs.special.abs().max() < high, name


def test_the_two_units_cancel_exactly(strong_model: VGGT, hard: VGGT) -> None:
    first, second = changed_units(strong_model, hard, FRAME)
    mlp = hard.get_submodule(FRAME).mlp
    if mlp.fc1.bias[first].abs() < mlp.fc1.bias[second].abs():
        first, second = second, first
    assert torch.equal(mlp.fc1.weight[first], 2 * mlp.fc1.weight[second])
    assert torch.equal(mlp.fc1.bias[first], 2 * mlp.fc1.bias[second])
    assert torch.equal(mlp.fc2.weight[:, second], -2 * mlp.fc2.weight[:, first])
    column = mlp.fc2.weight[:, first]
    assert column.norm() > 0.1 * mlp.fc2.weight.norm(dim=0).median(), "a dead unit would mean nothing"
    assert torch.equal(column, column.half().float())
    x = linear_inputs(hard, [f"{FRAME}.mlp.fc1"], [images(3)])[f"{FRAME}.mlp.fc1"].special
    with torch.no_grad():
        hidden = F.gelu(mlp.fc1(x))[:, [first, second]].double()
    assert hidden.min() > 3
    left = hidden @ torch.stack([column, -2 * column]).double()
    assert left.abs().max() < 1e-4 * hidden.max() * column.abs().max()


def test_the_function_is_nearly_the_same(strong_model: VGGT, hard: VGGT) -> None:
    """Two of many hidden units say something else: of a network of random weights, all units say as much."""
    before = {name: parameter.clone() for name, parameter in strong_model.named_parameters()}
    with torch.no_grad():
        wanted, found = strong_model(images(3)), hard(images(3))
    for name in ("pose_enc", "depth", "world_points"):
        assert relative_error(found[name], wanted[name]) < 0.05, name
    assert all(torch.equal(before[name], parameter) for name, parameter in strong_model.named_parameters())


@pytest.mark.slow
def test_the_seed_and_the_images_decide(strong_model: VGGT, hard: VGGT) -> None:
    again, other = (with_outlier_tokens(strong_model, seed, [images(1), images(2)]).state_dict() for seed in (0, 1))
    assert all(torch.equal(tensor, again[name]) for name, tensor in hard.state_dict().items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in hard.state_dict().items())


@pytest.mark.slow
def test_the_embedded_model_keeps_its_function_on_other_scenes() -> None:
    """Within what a rounding of its weights costs, which is about a per cent of a block's branch."""
    plain = VGGT.from_pretrained("embedded", dtype=torch.float32).eval()
    made, other = (render_scenes(scene_seeds("free", seeds), 4, (112, 112)).images for seeds in ([0, 1], [9]))
    hard = with_outlier_tokens(plain, 0, [made])
    peak = "aggregator.patch_embed.blocks.0.mlp.fc2"
    found = linear_inputs(hard, [peak], [other])[peak]
    assert found.special.abs().amax(-1).min() > 100, "every special token has it"
    assert found.patches.abs().max() < 30
    with torch.no_grad():
        wanted, got = plain(other), hard(other)
    for name in ("pose_enc", "depth", "world_points"):
        assert relative_error(got[name], wanted[name]) < 0.03, name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: with_outlier_tokens(nn.Linear(4, 4), 0, [images(1)]), "Linear has no encoder and aggregator"),
        (lambda m: with_outlier_tokens(m.half(), 0, [images(1)]), "float16"),
        (lambda m: with_outlier_tokens(m, 0, []), "there are no images"),
    ],
)
def test_bad_requests_are_named(strong_model: VGGT, call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(copy.deepcopy(strong_model))


def test_tokens_that_cannot_be_told_apart_are_named(strong_model: VGGT) -> None:
    alike = copy.deepcopy(strong_model)
    for block in alike.aggregator.patch_embed.blocks:
        nn.init.zeros_(block.norm2.weight)
    with pytest.raises(ValueError, match=r"patch_embed.blocks.0: no direction"):
        with_outlier_tokens(alike, 0, [images(1)])
