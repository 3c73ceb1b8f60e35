"""INT8 attention as a recipe's choice: what it reaches, that it is active, under every backend, saved and reported."""

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.codes import apart_by_codes
from tests.kernels.compiled import without
from vggt_int8 import BackendError, Recipe, RecipeError, VGGTInt8, load_recipe, quantize
from vggt_int8.difference import relative_error
from vggt_int8.machine import int_mm_is_exact
from vggt_int8.model.attention import SoftmaxAttention
from vggt_int8.quant import Int8Attention, attention
from vggt_int8.runtime import Runtime

MAPS = ("pose_enc", "depth", "depth_conf")
Make = Callable[[], VGGTInt8]


def recipe(name: str = "int8_dynamic", **options: object) -> Recipe:
    return replace(load_recipe(name), attention="int8", **options)


def int8_names(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, Int8Attention)}


def scenes(images: Tensor) -> list[Tensor]:
    """These, and three others."""
    return [images, images.flip(0), images.flip(-1), 1 - images]


def test_by_default_nothing_changes(make_bare: Make) -> None:
    for name in ("fp16", "int8_dynamic"):
        model = quantize(make_bare(), name)
        assert not int8_names(model)
        assert not any("attn.core" in row.name for row in model.quantization_report())


@pytest.mark.parametrize("name", ["fp16", "int8_weight_only", "int8_dynamic", "llm_int8"])
def test_the_aggregator_computes_in_int8(make_bare: Make, tiny_images: Tensor, name: str) -> None:
    backend = "reference" if name == "llm_int8" else "auto"
    exact = make_bare()(tiny_images)
    plain = quantize(make_bare(), name, backend)(tiny_images)
    model = quantize(make_bare(), recipe(name), backend)
    attentions = [n for n, module in model.named_modules() if isinstance(module, SoftmaxAttention)]
    assert int8_names(model) == {n for n in attentions if n.startswith("aggregator.")}
    assert len(int8_names(model)) == model.config.encoder_depth + 2 * model.config.depth
    assert any(n.startswith("camera_head.") for n in attentions)
    got = model(tiny_images)
    for key in MAPS:
        active, error = relative_error(got[key], plain[key]), relative_error(got[key], exact[key])
        assert 1e-5 < active < 0.05, (key, active)
        assert error < relative_error(plain[key], exact[key]) + 0.03, (key, error)
        largest = (got[key] - plain[key]).abs().max() / plain[key].abs().max()
        assert largest < 0.1, (key, largest)


@pytest.mark.parametrize("backend", ["native", "reference", "torchao", "bitsandbytes"])
def test_every_backend_computes_the_same(
    make_bare: Make, tiny_images: Tensor, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend in ("torchao", "bitsandbytes") and not int_mm_is_exact():
        pytest.skip("this CPU's integer product saturates")
    calls = []
    operator = attention.ops.int8_attention
    monkeypatch.setattr(attention.ops, "int8_attention", lambda *qkv: calls.append(1) or operator(*qkv))
    model = quantize(make_bare(), recipe(), backend)
    want = quantize(make_bare(), recipe(), "reference")(tiny_images)
    assert not calls, "reference runs the definition itself"
    got = model(tiny_images)
    assert len(calls) == (0 if backend == "reference" else len(int8_names(model)))
    apart = apart_by_codes(make_bare(), quantize(make_bare(), recipe(), "reference"), scenes(tiny_images))
    assert all(relative_error(got[key], want[key]) < apart[key] for key in MAPS)


def test_the_fused_network_computes_it_too(
    make_bare: Make, tiny_images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch)  # compiled kernels: their integer convolutions are another rounding
    for name in ("int8_weight_only", "int8_dynamic"):
        model = quantize(make_bare(), recipe(name), "reference")
        plain = quantize(make_bare(), name, "reference")
        want, got, other = model(tiny_images), Runtime(model)(tiny_images), Runtime(plain)(tiny_images)
        # Of the codes of queries and keys; of the others as well where activations have codes.
        exact = quantize(make_bare(), "int8_weight_only" if name == "int8_weight_only" else "fp16", "auto")
        apart = apart_by_codes(exact, model, scenes(tiny_images))
        for key in MAPS:
            assert relative_error(got[key], want[key]) < apart[key], (name, key)
        assert relative_error(got["depth"], other["depth"]) > 1e-5


def test_the_report(make_bare: Make) -> None:
    model = quantize(make_bare(), recipe())
    rows = {row.name: row for row in model.quantization_report()}
    row = rows["aggregator.global_blocks.0.attn.core"]
    assert (row.type, row.scheme, row.backend, row.bytes) == ("Int8Attention", "INT8 QK", "native", 0)
    assert (row.kernel, row.reason) == ("int8 scores in fp32, exact", "auto: native")
    row = rows["camera_head.trunk.0.attn.core"]
    assert (row.type, row.scheme, row.backend) == ("SoftmaxAttention", "float", "pytorch")
    assert row.reason == "not among attention_layers"
    assert "INT8 QK" in str(model.quantization_report())
    model.set_backend("reference")
    row = {row.name: row for row in model.quantization_report()}["aggregator.global_blocks.0.attn.core"]
    assert (row.backend, row.reason) == ("reference", "requested")


def test_saved_and_loaded(make_bare: Make, bare_checkpoint: Path, tiny_images: Tensor, tmp_path: Path) -> None:
    model = VGGTInt8.from_pretrained(bare_checkpoint, recipe=recipe())
    model.save_pretrained(tmp_path / "int8")
    stored = json.loads((tmp_path / "int8" / "config.json").read_text())["quantization_config"]["recipe"]
    assert stored["attention"] == "int8"
    assert "encoder" not in str(stored["attention_layers"]), "groups are written out as patterns"
    again = VGGTInt8.from_pretrained(tmp_path / "int8")
    assert int8_names(again) == int8_names(model) == int8_names(quantize(make_bare(), recipe()))
    want, got = model(tiny_images), again(tiny_images)
    assert all(torch.equal(got[key], want[key]) for key in MAPS)
    assert all("core" not in name for name in again.state_dict())


def test_what_exclude_and_attention_layers_choose(make_bare: Make) -> None:
    model = quantize(make_bare(), recipe(attention_layers=(r".*\.global_blocks\..*", r"camera_head\..*")))
    assert {name.split(".")[-4] for name in int8_names(model)} == {"global_blocks", "trunk"}
    model = quantize(make_bare(), recipe(exclude=(r"aggregator\.frame_blocks\..*\.core",)))
    assert {name.split(".")[-4] for name in int8_names(model)} == {"global_blocks", "blocks"}
    assert model.quantization_plan["aggregator.frame_blocks.0.attn.core"].reason == "excluded"
    for options, message in (
        (
            {"attention_layers": (r"agregator\..*",)},
            r"attention_layers 'agregator.*' matches no attention .*'aggregator",
        ),
        ({"exclude": (r".*\.core",)}, "exclude leaves no attention to it"),
    ):
        model = make_bare()
        with pytest.raises(RecipeError, match=message):
            quantize(model, recipe(**options))
        assert not int8_names(model)


def test_a_model_without_attention_that_can_be_replaced() -> None:
    class Foreign(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(8, 24)

    model = Foreign()
    with pytest.raises(RecipeError, match=r"no attention of this Foreign can be replaced: .*VGGTInt8\.from"):
        quantize(model, Recipe(attention="int8"))
    assert isinstance(model.qkv, nn.Linear)


def test_twice(make_bare: Make) -> None:
    model = quantize(make_bare(), recipe("fp16"))
    with pytest.raises(RecipeError, match="quantized already"):
        quantize(model, recipe("fp16"))


def test_a_gpu_that_cannot_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    check = functools.partial(Int8Attention.check, Int8Attention.scheme)
    check("auto", "cpu")
    native = attention.get_backend("native")
    monkeypatch.setattr(type(native), "unsupported", lambda *_: "this GPU has compute capability 7.5")
    check("reference", "cuda")
    with pytest.raises(BackendError, match=r"cannot run on cuda: .* 7\.5\. Choose backend='reference', or .*'float'"):
        check("native", "cuda")


def test_gradients_are_those_of_float_attention() -> None:
    results = []
    for module in (SoftmaxAttention(), Int8Attention(), Int8Attention("reference")):
        generator = torch.Generator().manual_seed(0)
        qkv = [torch.randn(1, 2, 9, 16, generator=generator, requires_grad=True) for _ in range(3)]
        y = module(*qkv)
        y.square().sum().backward()
        results.append((y.detach(), [x.grad for x in qkv]))
    plain, int8, reference = results
    assert torch.equal(int8[0], reference[0])
    assert 1e-4 < relative_error(int8[0], plain[0]) < 0.03
    for got, want in zip(int8[1], plain[1], strict=True):
        assert relative_error(got, want) < 0.1


def test_mixed_dtypes_under_autocast() -> None:
    qkv = torch.randn(3, 1, 2, 9, 16, generator=torch.Generator().manual_seed(0))
    got = Int8Attention()(qkv[0], qkv[1], qkv[2].bfloat16())
    assert got.dtype == torch.bfloat16
    assert relative_error(got.float(), SoftmaxAttention()(*qkv)) < 0.03
