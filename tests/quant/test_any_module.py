"""`quantize()` on somebody else's modules: nothing that hangs on a layer is lost, and an error changes nothing."""

import signal
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from vggt_int8 import Recipe, VGGTInt8, quantize
from vggt_int8.difference import relative_error
from vggt_int8.quant import Int8Conv2d, Int8Linear, quantization_report, quantize_module
from vggt_int8.quant import quantize as quantize_file
from vggt_int8.recipe import RecipeError

ALL = Recipe(weights="int8", activations="dynamic", include=[".*"])


def beside(layer: nn.Module) -> nn.ModuleDict:
    """The layer, and a plain one that can be quantized."""
    return nn.ModuleDict({"layer": layer, "plain": nn.Linear(8, 8)})


def test_a_module_under_two_names_stays_one() -> None:
    shared, block = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8))
    model = nn.ModuleDict({"a": shared, "b": shared, "first": block, "second": block})
    plan = quantize_module(model, ALL)
    assert isinstance(model["a"], Int8Linear)
    assert model["a"] is model["b"]
    assert model["first"] is model["second"]
    assert isinstance(model["first"][0], Int8Linear)
    assert set(plan) == {"a", "b", "first.0", "second.0"}


@pytest.mark.parametrize("include", ["a|first.0", "b|second.0", "a|b|second.0"])
def test_names_of_one_module_that_a_recipe_tells_apart(include: str) -> None:
    shared, block = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8))
    model = nn.ModuleDict({"a": shared, "b": shared, "first": block, "second": block})
    with pytest.raises(RecipeError, match=r"(a and b|first.0 and second.0) are one module"):
        quantize(model, Recipe(include=include.replace(".", r"\.")))
    assert model["a"] is shared


def tied_to_an_embedding() -> nn.Module:
    model = beside(nn.Linear(8, 8))
    model["embedding"] = nn.Embedding(8, 8)
    model["layer"].weight = model["embedding"].weight
    return model


def tied_to_a_linear() -> nn.Module:
    model = beside(nn.Linear(8, 8))
    model["other"] = nn.Linear(8, 8)
    model["layer"].weight = nn.Parameter(model["other"].weight.detach())  # the same memory
    return model


def changed(change: Callable[[nn.Linear], Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        layer = nn.Linear(8, 8)
        return beside(change(layer) or layer)

    return make


class Masked(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias * 0)


class Reads(nn.Module):
    """Reads the weights of its layers in the ways in which networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.listed = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.deep = nn.Sequential(nn.Linear(8, 8))
        self.plain = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.plain.weight.device).to(self.deep[0].weight.dtype)
        for one in self.listed:
            x = F.linear(x, one.weight)
        return self.plain(self.deep(self._fused(x)))

    def _fused(self, x: Tensor) -> Tensor:
        layer = self.layer
        return x @ layer.weight


KEPT = {
    "tied to an embedding": (tied_to_an_embedding, "tied"),
    "tied to a linear": (tied_to_a_linear, "tied"),
    "weight_norm": (changed(parametrizations.weight_norm), "ParametrizedLinear is more than a Linear"),
    "weight_norm as it was": (changed(lambda layer: nn.utils.spectral_norm(layer)), "computed at each call"),
    "pruned": (changed(lambda layer: prune.l1_unstructured(layer, "weight", 0.5)), "computed at each call"),
    "a forward of its own": (changed(lambda layer: vars(layer).update(forward=lambda x: x)), "its own forward"),
    "compiled by itself": (changed(lambda layer: layer.compile(backend="eager")), "its own _compiled_call_impl"),
    "a state-dict hook": (
        changed(lambda layer: layer.register_state_dict_post_hook(lambda *_: None) and None),
        "state_dict_hooks expect floats",
    ),
    "a buffer more": (changed(lambda layer: layer.register_buffer("mask", torch.ones(8))), "holds 'mask' as well"),
    "a subclass": (lambda: beside(Masked(8, 8)), "Masked is more than a Linear"),
    "lazy": (lambda: beside(nn.LazyLinear(8)), "LazyLinear is more than a Linear"),
    "float8": (changed(lambda layer: layer.to(torch.float8_e4m3fn)), "its weight is torch.float8_e4m3fn"),
    "complex": (lambda: beside(nn.Linear(8, 8, dtype=torch.complex64)), "its weight is torch.complex64"),
    "no rows": (lambda: beside(nn.Linear(8, 0)), r"its weight \[0, 8\] is empty"),
    "an attention": (lambda: beside(nn.MultiheadAttention(8, 2)), r"layer \(MultiheadAttention\) reads its weight"),
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element", "ignore:.*weight_norm", "ignore:Lazy modules")
@pytest.mark.parametrize("case", KEPT)
def test_a_layer_that_is_more_is_kept_with_a_reason(case: str) -> None:
    make, reason = KEPT[case]
    model = make()
    before = dict(model.named_modules())
    with pytest.warns(UserWarning, match=rf"kept as they are: .*{reason}"):
        quantize(model, ALL)
    assert isinstance(model["plain"], Int8Linear)
    name = next(name for name in before if name in ("layer", "layer.out_proj"))
    assert all(model.get_submodule(name) is module for name, module in before.items() if name.startswith("layer"))
    kept = [entry for entry in model.quantization_plan.values() if entry.unable]
    assert name in [entry.name for entry in kept] or case == "an attention"
    if case != "lazy":
        reasons = {row.name: row.reason for row in quantization_report(model)}
        assert all(reasons[entry.name] == entry.reason for entry in kept)


def test_weights_that_others_read_are_found_in_their_source() -> None:
    model = nn.Sequential(Reads())
    x = torch.rand(3, 8)
    with pytest.warns(UserWarning, match=r"0 \(Reads\) reads its weight itself"):
        plan = quantize_module(model, ALL)
    kept = {entry.name for entry in plan.values() if entry.unable}
    assert kept == {"0.layer", "0.listed.0", "0.listed.1", "0.deep.0"}
    assert isinstance(model[0].plain, Int8Linear)
    model(x)


@pytest.mark.filterwarnings("ignore:recipe .*kept")
@torch.no_grad()
def test_pytorchs_transformer_runs() -> None:
    model = nn.ModuleDict(
        {
            "encoder": nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1),
            "decoder": nn.TransformerDecoderLayer(8, 2, 16, batch_first=True),
        }
    ).eval()
    x = torch.rand(2, 3, 8, generator=torch.Generator().manual_seed(0))
    want = model["decoder"](x, model["encoder"](x))
    quantize(model, ALL)
    assert isinstance(model["encoder"].layers[0].linear1, nn.Linear)
    assert isinstance(model["decoder"].linear1, Int8Linear)
    assert (model["decoder"](x, model["encoder"](x)) - want).abs().max() < 0.05


class BaseTunerLayer:
    """As peft calls the base of its adapters."""


class Adapter(nn.Module, BaseTunerLayer):
    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.base_layer = nn.Linear(8, 8)
        vars(self).update(attributes)


def test_a_layer_whose_adapter_hands_it_to_other_code_is_kept() -> None:
    a = nn.ModuleDict({"default": nn.Linear(8, 2)})
    model = nn.ModuleDict(
        {
            "lora": Adapter(lora_A=a, lora_variant={}),
            "dora": Adapter(lora_A=a, lora_variant={"default": "DoRA"}),
            "other": Adapter(),
        }
    )
    with pytest.warns(UserWarning, match=r"dora.base_layer \(Linear: dora \(Adapter\) reads its weight itself"):
        quantize(model, ALL)
    assert [type(one.base_layer) for one in model.values()] == [Int8Linear, nn.Linear, nn.Linear]


def test_hooks_and_attributes_go_over() -> None:
    model, calls = nn.Sequential(nn.Linear(8, 8)), []
    layer = model[0]
    layer.tag = "mine"
    handle = layer.register_forward_hook(lambda m, a, k, y: calls.append("forward"), with_kwargs=True)
    layer.register_forward_pre_hook(lambda m, a: calls.append("before"))
    layer.register_full_backward_hook(lambda m, i, o: calls.append("backward"))
    quantize(model, ALL)
    assert isinstance(model[0], Int8Linear)
    assert model[0].tag == "mine"
    model(torch.rand(2, 8, requires_grad=True)).sum().backward()
    assert calls == ["before", "forward", "backward"]
    handle.remove()
    model(torch.rand(2, 8))
    assert calls[3:] == ["before"]


def on_meta() -> nn.Module:
    return beside(nn.Linear(8, 8, device="meta"))


def not_a_number() -> nn.Module:
    model = beside(nn.Linear(8, 8))
    model["plain"].weight.data[0, 0] = torch.nan
    return model


def beyond_fp32() -> nn.Module:
    model = beside(nn.Linear(8, 8)).double()
    model["plain"].weight.data[0, 0] = 1e300
    return model


def sharded() -> nn.Module:
    kind = type("FSDPModule", (nn.Sequential,), {"__module__": "torch.distributed.fsdp.wrapper"})
    return nn.Sequential(kind(nn.Linear(8, 8)))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (on_meta, ValueError, "layer: its weight is on the meta device"),
        (not_a_number, ValueError, "plain: the weight holds NaN or inf"),
        (beyond_fp32, ValueError, "plain: the weight holds 1e.300, which an fp32 scale cannot hold"),
        (sharded, RecipeError, "0, a FSDPModule, holds shards"),
        (lambda: nn.Sequential(Masked(8, 8)), RecipeError, "'0' cannot be replaced: Masked is more than a Linear"),
    ],
)
def test_what_cannot_be_is_refused_by_name_and_nothing_changes(
    make: Callable[[], nn.Module], error: type[Exception], message: str
) -> None:
    model = make()
    before = list(model.modules())
    with pytest.raises(error, match=message):
        quantize(model, ALL)
    assert all(a is b for a, b in zip(before, model.modules(), strict=True))
    assert not hasattr(model, "quantization_plan")


def watched(monkeypatch: pytest.MonkeyPatch, before: Callable[[nn.Module], None]) -> None:
    """Call `before` with each layer that is about to be converted, by one thread."""
    convert = quantize_file._Conversion.new

    def watching(job: Any, layer: nn.Module) -> nn.Module:
        before(layer)
        return convert(job, layer)

    monkeypatch.setattr(quantize_file._Conversion, "new", watching)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


def test_no_second_model_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)))
    floats, alive = [weakref.ref(layer.weight) for layer in model], []
    watched(monkeypatch, lambda _: alive.append(sum(weight() is not None for weight in floats)))
    quantize(model, ALL)
    assert alive == [5, 4, 3, 2, 1]
    assert not any(weight() is not None for weight in floats)


def refuse_size(size: int, error: type[BaseException]) -> Callable[[nn.Module], None]:
    def refuse(layer: nn.Module) -> None:
        if layer.weight.shape[0] == size:
            raise error

    return refuse


def test_memory_that_does_not_suffice_leaves_the_model_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 9), nn.Linear(9, 10), nn.Linear(10, 2))
    watched(monkeypatch, refuse_size(10, MemoryError))  # for the largest
    with pytest.raises(MemoryError) as caught:
        quantize(model, ALL)
    assert [type(layer) for layer in model] == [nn.Linear] * 4
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_model_that_is_half_converted_is_said_to_be(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """Which takes more than a signal, or less memory than there was a moment ago."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 9), nn.Linear(9, 10), nn.Linear(10, 2))
    watched(monkeypatch, refuse_size(2, error))
    with pytest.raises(error) as caught:
        quantize(model, ALL)
    assert caught.value.__notes__ == ["3 of 4 layers are INT8 now: load the model anew before it is used"]
    with pytest.raises(RecipeError, match="the model is quantized already"):
        quantize(model, ALL)


def test_ctrl_c_waits_until_all_layers_are_replaced(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, make_tiny: Callable[[], VGGTInt8]
) -> None:
    model, calls = make_tiny(), []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    watched(monkeypatch, lambda layer: calls.append(layer.in_features) or signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        quantize(model, Recipe(include=r".*\.mlp\.fc[12]"))
    assert len(calls) > 3
    assert sum(isinstance(module, Int8Linear) for module in model.modules()) == len(calls)
    assert model.config.quantization_config.parsed().include == (r".*\.mlp\.fc[12]",)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)  # is heard as before


@pytest.mark.parametrize("value", [torch.zeros(3), None, "model", nn.Linear])
def test_what_is_no_module_is_named(value: Any) -> None:
    with pytest.raises(TypeError, match=r"quantize\(\) takes a torch.nn.Module, not (a|the class) \w+"):
        quantize(value, ALL)


def test_paddings_that_others_use() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, padding=(1, 2), padding_mode="circular")
    )
    x = torch.rand(1, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    want = model(x)
    quantize(model, ALL)
    assert [type(layer) for layer in model] == [Int8Conv2d] * 2
    assert relative_error(model(x), want) < 0.02


def test_output_size_of_a_transposed_convolution() -> None:
    model = nn.ModuleDict({"up": nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, dilation=2)})
    x = torch.rand(1, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    sizes = ([11, 13], [12, 14])
    want = [model["up"](x, output_size=size) for size in sizes]
    quantize(model, Recipe(include=".*"))
    for size, expected in zip(sizes, want, strict=True):
        got = model["up"](x, output_size=size)
        assert got.shape == expected.shape
        assert (got - expected).abs().max() < 0.02
    with pytest.raises(ValueError, match=r"output_size \[13, 14\] must lie between \[11, 13\] and \[12, 14\]"):
        model["up"](x, output_size=[13, 14])


def test_flags_and_dtypes_of_the_rest_stay() -> None:
    model = beside(nn.Conv2d(4, 4, 3, groups=2, dilation=2)).train().bfloat16()
    model["norm"] = nn.LayerNorm(8)
    model["norm"].weight.requires_grad_(False)
    model["plain"].eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize(model, ALL)
    assert isinstance(model["layer"], Int8Conv2d)
    assert (model["layer"].training, model["plain"].training) == (True, False)
    assert (model["norm"].weight.requires_grad, model["norm"].bias.requires_grad) == (False, True)
    assert model["layer"](torch.rand(1, 4, 9, 9, dtype=torch.bfloat16)).dtype == torch.bfloat16
