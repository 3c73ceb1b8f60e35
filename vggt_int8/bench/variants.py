"""The ways to run VGGT that are compared, by name.

A name is one of `BASELINES`, or `<recipe>:<backend>` for any recipe and any backend of this package:
`int8_dynamic:native`, `my.toml:reference`. A variant builds a `Network` from a `Source`, always from the same weights.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch

from vggt_int8.bench import baselines
from vggt_int8.bench.baselines import Build, Network, fill
from vggt_int8.bench.fastvggt import fastvggt
from vggt_int8.bench.source import Source
from vggt_int8.global_attention import KEYFRAMES
from vggt_int8.pretrained import quantize
from vggt_int8.pretrained.int8_network import Int8Network
from vggt_int8.pretrained.model import int8_class
from vggt_int8.quant.backends import BACKENDS, BackendError
from vggt_int8.recipe import available_recipes, load_recipe


@dataclass(frozen=True)
class Variant:
    """One way to run the network.

    title: for tables.
    up_to: the largest number of frames in the default sweep; slow variants are skipped where a call takes seconds
        (naming a variant lifts this).
    compiles: whether the first call may take minutes and has a time limit.
    keyframes: number of key frames of global attention, for its work and for the expected outputs; None for all.
    merges: it saves work in another way, so its outputs must only be finite, and it has no floor.
    """

    name: str
    title: str
    build: Build
    up_to: int
    int8: bool = False  # whether its linears multiply int8 by int8
    compiles: bool = False
    keyframes: int | None = None
    merges: bool = False


BASELINES = {
    variant.name: variant
    for variant in (
        Variant("reference", "reference repository, bf16 autocast", baselines.reference, 200),
        Variant("fp32", "fp32", baselines.fp32, 10),
        Variant("bf16-autocast", "bf16 autocast over fp32 weights", baselines.bf16_autocast, 100),
        Variant("bf16", "bf16 weights", baselines.bf16, 10),
        Variant("fp16", "fp16 weights", baselines.fp16, 10),
        Variant("bf16-compiled-blocks", "bf16, blocks compiled", baselines.bf16_compiled_blocks, 32, compiles=True),
        Variant("bf16-compiled", "bf16, blocks and heads compiled", baselines.bf16_compiled, 200, compiles=True),
        Variant(
            "bf16-compiled-graph",
            "bf16, compiled, in a CUDA graph",
            baselines.bf16_compiled_graph,
            32,
            compiles=True,
        ),
        Variant("torchao", "torchao W8A8, eager", baselines.torchao, 10, int8=True),
        Variant("torchao-compiled", "torchao W8A8, compiled", baselines.torchao_compiled, 32, int8=True, compiles=True),
        Variant("torchao-fp8-compiled", "torchao FP8, compiled", baselines.torchao_fp8_compiled, 100, compiles=True),
        Variant(
            "keyframes",
            f"int8_dynamic, native, {KEYFRAMES} key frames",
            lambda source, device: _keyframed(source, device),
            1000,
            int8=True,
            keyframes=KEYFRAMES,
        ),
        Variant("fastvggt", "FastVGGT's code, bf16, merging from block 0", fastvggt, 1000, merges=True),
    )
}
# The same limit for <recipe>:<backend>. Weights alone in INT8 gain where weights are the work: at few frames.
NATIVE_UP_TO = {"fp16": 100, "int8_weight_only": 32}
NATIVE, OTHERS = 200, 10

# In the order of measuring: what takes longest to compile comes last.
DEFAULTS = {
    "cuda": (
        *("int8_dynamic:native", "keyframes", "reference", "bf16-compiled", "bf16-compiled-graph", "bf16-autocast"),
        *("fp16:native", "int8_weight_only:native", "fp32", "bf16", "int8_dynamic:bitsandbytes"),
        *("llm_int8:bitsandbytes", "torchao", "torchao-fp8-compiled", "torchao-compiled"),
    ),
    "cpu": ("fp32", "bf16-autocast", "int8_weight_only:native", "int8_dynamic:native"),
}


def find_variant(name: str) -> Variant:
    """The variant of that name. Raises ValueError, naming the choices, `RecipeError` or `BackendError`."""
    if name in BASELINES:
        return BASELINES[name]
    recipe, colon, backend = name.rpartition(":")
    if not colon:
        raise ValueError(
            f"there is no variant {name!r}: choose from {', '.join(BASELINES)}, or <recipe>:<backend> with one of the "
            f"recipes {', '.join(available_recipes())} (or a .toml file) and of the backends {', '.join(BACKENDS)}"
        )
    if backend not in BACKENDS:
        raise BackendError(f"variant {name!r} names no backend: choose one of {', '.join(BACKENDS)}")
    loaded = load_recipe(recipe)
    up_to = NATIVE_UP_TO.get(recipe, NATIVE) if backend == "native" else OTHERS
    int8 = loaded.weights == "int8" and loaded.activations != "none"
    return Variant(name, f"{recipe}, {backend}", _quantized(recipe, backend), up_to, int8)


def find_variants(names: Iterable[str]) -> list[Variant]:
    """`find_variant` of each, once each, in order."""
    return [find_variant(name) for name in dict.fromkeys(names)]


def _quantized(recipe: str, backend: str, keywords: Mapping[str, Any] = MappingProxyType({})) -> Build:
    """Our INT8, as `from_pretrained` leaves it: fp16 on CUDA, fp32 on a CPU, fused where the native backend runs."""

    def build(source: Source, device: torch.device) -> Network:
        on_cuda = device.type == "cuda"
        model = fill(int8_class(type(source.config)), source, device, torch.float16 if on_cuda else torch.float32)
        loaded = load_recipe(recipe)
        has_int8 = loaded.weights == "int8"
        if not has_int8 and backend != "native":
            raise BackendError(f"recipe {recipe!r} quantizes nothing, so there is nothing for {backend!r} to run")
        if not has_int8 and not on_cuda:
            raise BackendError(f"recipe {recipe!r} on a CPU is the plain network in fp32: see variant fp32")
        if source.is_random:  # whose codes are as good as any others, and time does not depend on them
            loaded = replace(loaded, rounding="nearest")
        scenes = source.calibration(loaded.calibration_samples) if loaded.needs_calibration else None
        if scenes is not None:
            loaded = replace(loaded, calibration_samples=sum(map(len, scenes)))
        quantize(model, loaded, backend if has_int8 else "auto", calibration=scenes)
        if backend == "native":
            model.set_runtime("on")
        return Network(
            model,
            lambda images: model(images, check_finite=False, **keywords),
            lambda: _mode(model),
            model.runtime.reset,
        )

    return build


def _keyframed(source: Source, device: torch.device) -> Network:
    keywords = {"global_attention": "keyframes", "keyframes": KEYFRAMES}
    return _quantized("int8_dynamic", "native", keywords)(source, device)


def _mode(model: Int8Network) -> str:
    report = model.runtime_report()
    how = report.mode + (f" ({report.reason})" if report.reason else "")
    return how + (f"; global attention: {report.attention_in_words}" if report.attention else "")
