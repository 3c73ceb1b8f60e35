"""Factors folded into neighbours: nothing changes in exact arithmetic, and channels with outliers cost less."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.quant.numbers import randn
from vggt_int8 import Recipe, RecipeError, VGGTInt8, load_recipe, quantize
from vggt_int8.difference import relative_error
from vggt_int8.eval.outliers import with_outliers
from vggt_int8.model.layers import Block
from vggt_int8.quant import Int8Linear, make_plan
from vggt_int8.quant.seams import Seam, find_seams
from vggt_int8.quant.smoothing import Fold, column_sizes, estimated_folds, factors, fold_, parameters_of, within_fp16
from vggt_int8.recipe import Family

Make = Callable[[], VGGTInt8]
SMOOTHED = replace(load_recipe("int8_dynamic"), smoothing="weights")
PLAIN = replace(SMOOTHED, smoothing=0)


def seams_of(model: nn.Module, recipe: Recipe = SMOOTHED) -> list[Seam]:
    return find_seams(model, make_plan(model, recipe))


def run(model: VGGTInt8, images: Tensor) -> Tensor:
    """All layers of the aggregator and the poses, as one tensor in the model's own dtype (outputs leave in fp32)."""
    with torch.no_grad():
        tokens = model.aggregator(images[None], range(len(model.aggregator.frame_blocks)))
        poses = model.camera_head(tokens[max(tokens)][:, :, 0])
        return torch.cat([part.flatten() for part in (*tokens.values(), *poses)])


def test_the_map_names_every_seam_of_a_block(make_tiny: Make) -> None:
    model = make_tiny()
    found = {(seam.writer, seam.reader) for seam in seams_of(model)}
    blocks = [name for name, module in model.named_modules() if isinstance(module, Block)]
    expected = {("camera_head.trunk_norm", "camera_head.pose_branch.fc1")}
    for block in blocks:
        expected |= {(f"{block}.norm1", f"{block}.attn.qkv"), (f"{block}.norm2", f"{block}.mlp.fc1")}
        expected |= {(f"{block}.attn.qkv", f"{block}.attn.proj")}
    assert found == expected
    assert len(blocks) > 4
    readers = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    assert len(readers) > len(blocks) * 2, "norms that are no seam are there as well"


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_folding_changes_nothing(make_tiny: Make, tiny_images: Tensor, dtype: torch.dtype, bound: float) -> None:
    """With factors of any size at every seam, beside one another: some layers take two."""
    model = make_tiny().to(dtype)
    folds: dict[str, Fold] = {}
    generator = torch.Generator().manual_seed(3)
    for seam in seams_of(model):
        width = model.get_submodule(seam.reader).in_features
        f = torch.exp(2 * torch.randn(width, generator=generator, dtype=torch.float64))
        rows = torch.cat([torch.ones(2 * width, dtype=torch.float64), 1 / f]) if seam.values else 1 / f
        folds[seam.writer] = replace(folds.get(seam.writer, Fold()), rows=rows)
        folds[seam.reader] = replace(folds.get(seam.reader, Fold()), columns=f)
    before, weights = run(model, tiny_images.to(dtype)), copy.deepcopy(model.state_dict())
    fold_(model, folds)
    assert relative_error(run(model, tiny_images.to(dtype)), before) < bound
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, weights[name])}
    assert {name.rpartition(".")[0] for name in changed} == folds.keys()


def test_factors_by_hand() -> None:
    f = factors(torch.tensor([8.0, 2.0, 2.0]), torch.tensor([0.5, 0.5, 2.0]), 0.5)
    # sqrt(x / w) = 4, 2, 1; x / f = 2, 1, 2, so all times 2 / 8, which brings the largest back to 8
    assert torch.allclose(f, torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64))
    assert torch.allclose(
        factors(torch.tensor([8.0, 2.0]), torch.tensor([3.0, 5.0]), 1.0), torch.tensor([1, 0.25]).double()
    )
    for x, w in (([0.0, 0.0], [1.0, 1.0]), ([1.0, 1.0], [0.0, 0.0]), ([1.0, math.nan], [1.0, 1.0])):
        assert factors(torch.tensor(x), torch.tensor(w), 0.5).tolist() == [1, 1]
    dead = factors(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0]), 0.5)
    assert dead.isfinite().all()
    assert (dead > 0).all()


def test_estimates_are_what_random_inputs_show() -> None:
    """LayerNorm of noise, and values of it, have the sizes that their parameters tell."""
    torch.manual_seed(0)
    block = Block(64, 2, 2.0).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    model = nn.ModuleDict({"b": block})
    norm, values = Seam("b.attn.qkv", "b.norm1"), Seam("b.attn.proj", "b.norm1", "b.attn.qkv")
    folds = estimated_folds([norm, values], parameters_of(model))
    written = block.norm1(torch.randn(20_000, 64, dtype=torch.float64))
    third = F.linear(written, block.attn.qkv.weight, block.attn.qkv.bias)[:, 128:]
    for x, reader in ((written, block.attn.qkv), (third, block.attn.proj)):
        f = factors(x.square().mean(0).sqrt(), column_sizes(reader.weight), 0.5)
        name = "b.attn.qkv" if reader is block.attn.qkv else "b.attn.proj"
        assert torch.allclose(folds[name].columns, f, rtol=0.05)


@pytest.mark.parametrize("values", [False, True])
def test_factors_do_not_depend_on_where_in_memory_weights_lie(values: bool) -> None:
    """What streams by may have other strides than what is in place, and a sum in fp32 another last digit then."""
    k = 768
    parameters = {"norm.weight": randn(k), "norm.bias": randn(k, seed=1)}
    parameters |= {"qkv.weight": randn(3 * k, k, seed=2), "qkv.bias": randn(3 * k, seed=3), "read.weight": randn(64, k)}
    seam = Seam("read", "norm", "qkv") if values else Seam("read", "norm")
    laid_out = {name: t.t().contiguous().t() if t.ndim == 2 else t for name, t in parameters.items()}
    assert laid_out["qkv.weight"].stride() != parameters["qkv.weight"].stride()
    one, other = (estimated_folds([seam], given.__getitem__) for given in (parameters, laid_out))
    for name, fold in one.items():
        for mine, its in ((fold.rows, other[name].rows), (fold.columns, other[name].columns)):
            assert (mine is None) == (its is None)
            assert mine is None or torch.equal(mine, its), name


def test_folded_numbers_stay_where_fp16_has_its_digits() -> None:
    written = torch.tensor([1e-3, 1.0, 6e4, 0.0])
    f = within_fp16(torch.tensor([1e6, 1e-7, 1.0, 5.0]).double(), written)
    kept = written / f
    assert kept[:3].min() >= 2**-10 * 0.999
    assert kept.max() <= 2**14 * 1.001
    assert f[3] == 5
    rounding = (kept.half().double() / kept.double() - 1).abs()[:3].max()
    assert rounding <= 2**-11


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["int8_dynamic", "int8_rotated", "int8_weight_only"])
def test_outlier_channels_cost_next_to_nothing(make_tiny: Make, tiny_images: Tensor, recipe: str) -> None:
    """A model with them is as exact as the same one without; unless it is smoothed it is not."""
    plain = make_tiny()
    hard = with_outliers(plain, 5, share=0.1)
    expected = run(plain, tiny_images)

    def error(model: VGGTInt8, smoothing: str | int) -> float:
        quantized = quantize(copy.deepcopy(model), replace(load_recipe(recipe), smoothing=smoothing), "reference")
        return relative_error(run(quantized, tiny_images), expected)

    assert relative_error(run(hard, tiny_images), expected) < 1e-5
    easy, smoothed, rough = error(plain, 0), error(hard, "weights"), error(hard, 0)
    assert smoothed < 1.3 * easy
    assert rough > 2 * easy


def test_codes_by_an_independent_computation(make_tiny: Make) -> None:
    """The qkv of a block has columns for its norm, and rows for its projection: both by hand, in fp64."""
    source, model = make_tiny().double().state_dict(), quantize(make_tiny(), SMOOTHED)
    block = "aggregator.global_blocks.1"
    gamma, beta = source[f"{block}.norm1.weight"], source[f"{block}.norm1.bias"]
    qkv, bias, proj = (source[f"{block}.attn.{name}"] for name in ("qkv.weight", "qkv.bias", "proj.weight"))
    width = len(gamma)

    def by_hand(x: Tensor, w: Tensor) -> Tensor:
        f = (x / w).sqrt()
        return f * (x / f).max() / x.max()

    into_qkv = by_hand((gamma**2 + beta**2).sqrt(), (qkv**2).mean(0).sqrt())
    value, shift = qkv[-width:], qkv[-width:] @ beta + bias[-width:]
    into_proj = by_hand((((value * gamma) ** 2).sum(1) + shift**2).sqrt(), (proj**2).mean(0).sqrt())
    qkv = qkv * into_qkv
    qkv[-width:] /= into_proj[:, None]
    bias[-width:] /= into_proj
    for name, floats in (("qkv", qkv), ("proj", proj * into_proj)):
        layer = model.get_submodule(f"{block}.attn.{name}")
        assert isinstance(layer, Int8Linear)
        exact = floats / floats.abs().amax(1, keepdim=True) * 127
        assert (layer.codes - exact).abs().max() < 0.5 + 1e-3
        assert torch.allclose(layer.weight_scale.double(), floats.abs().amax(1, keepdim=True) / 127, rtol=1e-5)
    assert torch.allclose(model.get_parameter(f"{block}.norm1.weight").double(), gamma / into_qkv, rtol=1e-3)
    assert torch.allclose(model.get_parameter(f"{block}.attn.qkv.bias").double(), bias, rtol=1e-3)


@pytest.mark.slow
def test_while_it_streams_by_is_the_same_as_in_place(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """And as saved and loaded again, from one file of another kind, and with a prefix before names."""
    streamed = VGGTInt8.from_pretrained(tiny_checkpoint, recipe=SMOOTHED)
    floats = VGGTInt8.from_pretrained(tiny_checkpoint)
    torch.save({f"module.{name}": tensor for name, tensor in floats.state_dict().items()}, tmp_path / "weights.pt")
    config = floats.config
    ways = [quantize(floats, SMOOTHED)]
    streamed.save_pretrained(tmp_path / "saved")
    ways.append(VGGTInt8.from_pretrained(tmp_path / "saved"))
    ways.append(VGGTInt8.from_pretrained(tmp_path / "weights.pt", recipe=SMOOTHED, config=copy.deepcopy(config)))
    expected = streamed.state_dict()
    for model in ways:
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor.float(), expected[name].float()), name
    assert ways[1].config.quantization_config.recipe["smoothing"] == "weights"
    plain = quantize(VGGTInt8.from_pretrained(tiny_checkpoint), PLAIN)
    assert "smoothing" not in plain.config.quantization_config.recipe
    name = "aggregator.global_blocks.1.norm1.weight"
    assert not torch.equal(plain.state_dict()[name].float(), expected[name].float())


def test_a_layer_that_stays_in_floats_takes_its_part(make_tiny: Make, tiny_images: Tensor) -> None:
    """Value rows of a qkv that is kept are divided in place; what leads into layers that are kept is left alone."""
    model, recipe = make_tiny(), replace(SMOOTHED, exclude=[r".*\.attn\.qkv", r".*\.mlp\.fc1"])
    before = copy.deepcopy(model.state_dict())
    expected = run(model, tiny_images)
    quantize(model, recipe, "reference")
    after = model.state_dict()
    block = "aggregator.frame_blocks.0"
    width = model.get_submodule(f"{block}.attn.qkv").in_features
    for key in ("weight", "bias"):
        old, new = (state[f"{block}.attn.qkv.{key}"] for state in (before, after))
        assert torch.allclose(new[: 2 * width], old[: 2 * width], rtol=1e-3, atol=1e-7)
        assert not torch.allclose(new[2 * width :], old[2 * width :], rtol=1e-2)
        assert torch.allclose(after[f"{block}.norm1.{key}"], before[f"{block}.norm1.{key}"], rtol=1e-3, atol=1e-7)
    assert relative_error(run(model, tiny_images), expected) < 0.1


def hooked(model: VGGTInt8) -> None:
    model.aggregator.frame_blocks[0].norm2.register_forward_hook(lambda *_: None)


def tied(model: VGGTInt8) -> None:
    model.aggregator.frame_blocks[0].norm2.weight = model.aggregator.frame_blocks[1].norm2.weight


def without_bias(model: VGGTInt8) -> None:
    model.aggregator.frame_blocks[0].norm2.bias = None


def another_norm(model: VGGTInt8) -> None:
    model.aggregator.frame_blocks[0].norm2 = nn.RMSNorm(model.config.embed_dim)


def in_two_places(model: VGGTInt8) -> None:
    model.aggregator.frame_blocks[0].norm2 = model.aggregator.frame_blocks[0].norm1


@pytest.mark.parametrize("change", [hooked, tied, without_bias, another_norm, in_two_places])
def test_what_cannot_be_folded_is_told_and_still_right(
    make_tiny: Make, tiny_images: Tensor, change: Callable[[VGGTInt8], None]
) -> None:
    model = make_tiny()
    change(model)
    name = "aggregator.frame_blocks.0.mlp.fc1"
    expected, weight = run(model, tiny_images), model.get_submodule(name).weight.detach().clone()
    with pytest.warns(UserWarning, match=r"without smoothing: .*frame_blocks\.0\.\S+ \(.*norm"):
        quantize(model, SMOOTHED, "reference")
    assert torch.equal(model.get_submodule(name).codes, Int8Linear.from_linear(linear_of(weight)).codes)
    assert relative_error(run(model, tiny_images), expected) < 0.1
    assert "aggregator.frame_blocks.0.attn.proj" in {seam.reader for seam in seams_of(make_tiny())}


def linear_of(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(*reversed(weight.shape), bias=False)
    layer.weight = nn.Parameter(weight)
    return layer


def test_a_damaged_weight_is_named_and_changes_nothing(make_tiny: Make) -> None:
    model = make_tiny()
    name = "aggregator.frame_blocks.0.mlp.fc1"
    model.get_submodule(name).weight.data[0, 0] = math.nan
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=f"{name}.*NaN"):
        quantize(model, SMOOTHED)
    assert all(torch.equal(tensor.nan_to_num(), before[k].nan_to_num()) for k, tensor in model.state_dict().items())


def test_recipes_that_cannot_be_smoothed() -> None:
    with pytest.raises(RecipeError, match=r"smoothing is 'much'; it must be 0 \(off\)"):
        Recipe(smoothing="much")
    with pytest.raises(RecipeError, match="smoothing is True"):
        Recipe(smoothing=True)
    with pytest.raises(RecipeError, match="has no effect: no layer is INT8"):
        Recipe(weights="keep", smoothing="weights")
    with pytest.raises(RecipeError, match="there is none for a Sequential: leave both out"):
        quantize(nn.Sequential(nn.Linear(4, 4)), Recipe(smoothing="weights"))


def test_no_layer_to_smooth_is_an_error(make_tiny: Make) -> None:
    recipe = Recipe(smoothing="weights", include=[r".*\.mlp\.fc2"])
    with pytest.raises(RecipeError, match="smoothing has no effect, since no linear behind a LayerNorm"):
        quantize(make_tiny(), recipe)


def test_maps_say_seams_in_full() -> None:
    head = 'name = "n"\nmodules = []\nmodel_types = []\nfull_size = {}\nfull_size_name = "N"\n[groups]\n[[seams]]\n'
    for line, wrong in (
        ("match = 'b'\nnorm = {}", "map, line 7: unknown key 'norm'"),
        ("match = '('", "line 7.*is no regular expression"),
        ("match = 'b'\nnorms = 'x'", r"\[\[seams\]\]: norms is 'x'; it must be a table"),
        ("match = 'b'\nvalues = { q = 'p' }", "values names 'q', which reads none of norms"),
    ):
        with pytest.raises(RecipeError, match=wrong):
            Family.from_toml(head + line, "map")
