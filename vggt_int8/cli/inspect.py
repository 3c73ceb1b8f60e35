"""`vggt-int8 inspect`: show what a checkpoint contains. Only its headers are read, no weights.

The layers come from the loading code, run on the meta device; their sizes come from the files.
"""

import re
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from vggt_int8.cli import console, options
from vggt_int8.cli.loading import Model
from vggt_int8.cli.quantize import summary
from vggt_int8.listing import first_few
from vggt_int8.plain_data import flat

if TYPE_CHECKING:
    from vggt_int8.model.network_config import NetworkConfig
    from vggt_int8.saves.license import License

# safetensors dtype -> (displayed name, bytes)
DTYPES = {"F64": ("fp64", 8), "F32": ("fp32", 4), "F16": ("fp16", 2), "BF16": ("bf16", 2), "I8": ("int8", 1)}
# A tensor belongs to the first part whose prefix matches.
PARTS: dict[str, str | tuple[str, ...]] = {
    "encoder": "aggregator.patch_embed.",
    "aggregator": "aggregator.",
    "camera head": "camera_head.",
    "depth head": ("depth_head.", "dense_head."),
    "point head": "point_head.",
    "track head": "track_head.",
    "text head": "text_alignment_head.",
}


@dataclass(frozen=True)
class Stored:
    """A tensor as described in a header."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return prod(self.shape) * DTYPES.get(self.dtype, ("", 4))[1]


@dataclass
class Layer:
    """Layers that only differ in their number."""

    name: str
    scheme: str
    runs_on: str
    reason: str
    count: int = 0
    size: int = 0

    @property
    def title(self) -> str:
        return self.name if self.count == 1 else f"{self.name} x {self.count}"

    @property
    def holds_anything(self) -> bool:
        """False for modules without tensors that are not quantized, such as attention in floating point."""
        return self.size > 0 or self.scheme != "float"

    def to_document(self) -> dict[str, Any]:
        """For a single layer, not for several similar ones."""
        words = {"name": self.name, "scheme": self.scheme, "bytes": self.size}
        return {**words, "runs_on": self.runs_on, "reason": self.reason}


def inspect_model(
    model: Model,
    brief: Annotated[
        bool, typer.Option("--brief/--all", help="One line for each group of similar layers, or for each layer.")
    ] = True,
    verify: Annotated[
        bool, typer.Option("--verify", help="Also read the whole checkpoint and compare it with its digests.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Show every layer of a checkpoint, and its size per part and dtype. Loads no weights."""
    from vggt_int8.pretrained.source import stored_quantization

    with console.step(f"Reading the headers of {model}"):
        config, tensors = read_checkpoint(model, verify=verify)
        quantization = stored_quantization(config, model)
        layers = layer_table(config, tensors, every=as_json or not brief)
        licence = _licence_of(config, model)
    recipe, checkpoint_format, calibration, training = None, None, None, None
    if quantization is not None:
        recipe, checkpoint_format = quantization.parsed().name, quantization.format_version
        calibration, training = quantization.calibration, quantization.training
    total = sum(tensor.size for tensor in tensors.values())
    dtypes = _summed((DTYPES.get(t.dtype, (t.dtype, 0))[0], t.size) for t in tensors.values())
    parts = _summed((part_of(name), t.size) for name, t in tensors.items())
    if as_json:
        facts: dict[str, Any] = {"model": model, "recipe": recipe, "checkpoint_format": checkpoint_format}
        facts |= {"calibration": calibration, "training": training}
        facts["license"] = None if licence is None else licence.to_dict()
        sizes = {"tensors": len(tensors), "bytes": total, "parts": parts, "dtypes": dtypes}
        console.document("inspect", {**facts, **sizes, "layers": [layer.to_document() for layer in layers]})
        return
    shown = [layer for layer in layers if layer.holds_anything]
    for line in _fitted(shown, console.out.width) if console.out.is_terminal else _columns(shown):
        console.say(line)
    console.show(_size_table("part", parts, total), _size_table("dtype", dtypes, total))
    what = "not quantized" if recipe is None else f"recipe {recipe}, format {checkpoint_format}"
    if calibration is not None:
        for line in _calibration_lines(calibration, brief):
            console.say(line)
    if training is not None:
        console.say("\ntrained for INT8: " + ", ".join(f"{key} {value}" for key, value in flat(training)))
    stated = "not stated by its files: ask who made it" if licence is None else str(licence)
    console.say(f"\nlicence of the weights: {stated}")
    digests = "; all of it agrees with its digests" if verify else ""
    console.say(f"{model}: {what}, {len(tensors)} tensors, {console.megabytes(total)}{digests}")


def _licence_of(config: "NetworkConfig", model: str) -> "License | None":
    """The licence in config.json, or in the model card next to it, or in a file's header."""
    from vggt_int8.embedded import resolve_source
    from vggt_int8.saves.license import find_license, license_in

    return license_in(config) or find_license(resolve_source(model), {})


def read_checkpoint(model: str, *, verify: bool = False) -> "tuple[NetworkConfig, dict[str, Stored]]":
    """Config and tensor headers of a folder, a single safetensors file or a Hub model.

    verify: compare the contents with the digests in config.json; raises `CheckpointError` if they differ.
    """
    from vggt_int8.embedded import resolve_source
    from vggt_int8.pretrained import CheckpointError
    from vggt_int8.pretrained.checkpoint import read_headers
    from vggt_int8.pretrained.source import load_config, open_file
    from vggt_int8.saves.hub import check_hub
    from vggt_int8.saves.names import is_hub_id
    from vggt_int8.saves.save_id import check_one_save

    model = resolve_source(model)
    if is_hub_id(model):
        if verify:
            raise CheckpointError(f"{model} is not here: download it, and pass its folder to have it verified")
        check_hub(model, {})
        return _read_hub(model)
    path = Path(model)
    if path.is_file():
        if not model.endswith(".safetensors"):
            raise CheckpointError(f"{model} is no .safetensors file: only those have headers to read")
        headers: Mapping[str, Any] = read_headers([model])
        beside = (path.parent / "config.json").is_file()
        config = load_config(str(path.parent), {}) if beside else open_file(model, None, {})[1]
        if verify:
            check_one_save([model], verify=True)
        return config, {name: Stored(t.dtype, t.shape) for name, t in headers.items()}
    files = sorted(str(file) for file in path.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{model} holds no .safetensors file")
    headers = read_headers(files)
    config = load_config(model, {})
    check_one_save([file for file in files if Path(file).name.startswith("model")] or files, verify=verify)
    return config, {name: Stored(t.dtype, t.shape) for name, t in headers.items()}


def _read_hub(model: str) -> "tuple[NetworkConfig, dict[str, Stored]]":
    """Download only the headers, with HTTP ranges."""
    from huggingface_hub import get_safetensors_metadata
    from huggingface_hub.errors import NotASafetensorsRepoError

    from vggt_int8.pretrained import CheckpointError
    from vggt_int8.pretrained.source import load_config

    config = load_config(model, {})
    try:
        metadata = get_safetensors_metadata(model)
    except NotASafetensorsRepoError as error:
        raise CheckpointError(f"{model} on the Hub holds no .safetensors file") from error
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"the Hub did not give the headers of {model!r}: {reason}") from error
    tensors = {
        name: Stored(str(info.dtype), tuple(info.shape))
        for file in metadata.files_metadata.values()
        for name, info in file.tensors.items()
    }
    return config, tensors


def layer_table(config: "NetworkConfig", tensors: Mapping[str, Stored], *, every: bool) -> list[Layer]:
    """One entry per layer, or per group of similar layers, in checkpoint order."""
    import torch

    from vggt_int8.model.unfilled import unfilled
    from vggt_int8.pretrained.model import int8_class
    from vggt_int8.pretrained.source import stored_quantization
    from vggt_int8.quant.quantize import prepare_module
    from vggt_int8.quant.report import quantization_report

    skeleton = unfilled(int8_class(type(config)), config)
    plan = None
    quantization = stored_quantization(config, "the checkpoint")
    if quantization is not None:
        plan = prepare_module(skeleton, quantization.parsed())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report = {row.name: row for row in quantization_report(skeleton, plan, device)}
    groups: dict[tuple[str, ...], Layer] = {}
    modules = _by_module(tensors)
    containers = {".".join(parts[:n]) for parts in (name.split(".") for name in modules) for n in range(1, len(parts))}
    in_order = [name for name, row in report.items() if name in modules or not row.bytes]
    for name in [*in_order, *(name for name in modules if name not in report)]:
        row, owned = report.get(name), modules.get(name, {})
        kept = "/".join(sorted({DTYPES.get(t.dtype, (t.dtype, 0))[0] for t in owned.values()}))
        scheme, runs_on, reason = kept, "?", "not part of this model"
        if row is not None:
            scheme = kept if row.backend == "pytorch" and owned else row.scheme
            runs_on = row.kernel if row.backend == "pytorch" else f"{row.backend}: {row.kernel}"
            reason = row.reason
            if row.backend == "pytorch" and name in containers:
                reason = f"its own {', '.join(sorted(owned))}"  # the rest of it is in the layers inside
        shown = name if every else re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)
        layer = groups.setdefault((shown, scheme, runs_on, reason), Layer(shown, scheme, runs_on, reason))
        layer.count += 1
        layer.size += sum(tensor.size for tensor in owned.values())
    return list(groups.values())


def _by_module(tensors: Mapping[str, Stored]) -> dict[str, dict[str, Stored]]:
    """Module name -> its own tensors by the last part of their names."""
    modules: dict[str, dict[str, Stored]] = defaultdict(dict)
    for name, tensor in tensors.items():
        module, _, last = name.rpartition(".")
        modules[module][last] = tensor
    return modules


def _columns(layers: list[Layer]) -> Iterator[str]:
    """Aligned lines of any length: names are complete, so they can be searched."""
    cells = [("layer", "scheme", "MB", "runs on", "why")]
    for layer in layers:
        cells.append((layer.title, layer.scheme, f"{layer.size / 1e6:.3f}", layer.runs_on, layer.reason))
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    for name, scheme, size, runs_on, reason in cells:
        yield (
            f"{name:{widths[0]}}  {scheme:{widths[1]}}  {size:>{widths[2]}}  {runs_on:{widths[3]}}  {reason}".rstrip()
        )


def _fitted(layers: list[Layer], width: int) -> Iterator[str]:
    """The same lines within `width` characters. Kernels and reasons are footnotes, since many layers share them.

    A name that leaves no space for the other columns is on its own line, and complete.
    """
    notes: dict[str, int] = {}
    rows = []
    for layer in layers:
        how = layer.reason if layer.runs_on in layer.reason else f"{layer.runs_on}: {layer.reason}"
        note = f"[{notes.setdefault(how, len(notes) + 1)}]"
        rows.append((layer.title, f"{layer.scheme:12s}  {layer.size / 1e6:8.3f}  {note}"))
    room = max(width - max(len(rest) for _, rest in rows) - 2, len("layer"))
    column = max(len(title) for title, _ in [("layer", ""), *rows] if len(title) <= room)
    for title, rest in [("layer", f"{'scheme':12s}  {'MB':>8s}  how"), *rows]:
        if len(title) > column:
            yield title
            title = ""
        yield f"{title:{column}}  {rest}"
    yield ""
    for how, number in notes.items():
        yield from textwrap.wrap(f"[{number}] {how}", width, subsequent_indent="    ")


def _calibration_lines(calibration: dict[str, Any], brief: bool) -> Iterator[str]:
    """How the model was calibrated, and the ranges: minimum and maximum over similar layers, or for each layer."""
    yield f"\n{summary(calibration)}"
    yield f"images (sha256 of pixels): {first_few(calibration['sha256'], 3, spell=lambda digest: digest[:16])}"
    groups: dict[str, list[list[float]]] = defaultdict(list)
    for name, ranges in calibration["ranges"].items():
        groups[re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) if brief else name].append(ranges)
    for name, found in groups.items():
        kinds = zip(*found, strict=True)
        spans = [f"{min(kind):.3g}" + (f" to {max(kind):.3g}" if len(kind) > 1 else "") for kind in kinds]
        words = [f"special tokens {spans[0]}", f"others {spans[1]}"] if len(spans) == 2 else spans
        yield f"  {name}: {', '.join(words)}"


def part_of(name: str) -> str:
    """The part of the network to which a tensor belongs."""
    return next((part for part, prefix in PARTS.items() if name.startswith(prefix)), "other")


def _summed(sizes: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Bytes per key, in descending order."""
    summed: dict[str, int] = defaultdict(int)
    for key, size in sizes:
        summed[key] += size
    return dict(sorted(summed.items(), key=lambda item: -item[1]))


def _size_table(title: str, sizes: Mapping[str, int], total: int) -> Table:
    table = Table(f"\n{title}", "\nMB", "\nshare", box=None, pad_edge=False)
    table.columns[1].justify = table.columns[2].justify = "right"
    for key, size in sizes.items():
        table.add_row(key, f"{size / 1e6:,.2f}", f"{size / max(total, 1):.1%}")
    return table
