"""Imports inside the package point one way only, and every optional library has one home.

    cli -> {bench, training, scorecard, sensitivity, doctor, batch} -> {eval, export} -> pretrained
        -> {runtime, calibration} -> quant -> {model, kernels, …}

Read from the source text, so that imports inside functions count too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "vggt_int8"
TIERS = [
    {
        "address",
        "ahead",
        "similarity",
        "model",
        "kernels",
        "geometry",
        "global_attention",
        "images",
        "recipe",
        "scenes",
        "quiet",
        "chart",
        "cpus",
        "difference",
        "disk",
        "files",
        "interrupts",
        "listing",
        "machine",
        "embedded",
        "evidence",
        "encoding",
        "patterns",
        "placeholders",
        "plain_data",
        "saves",
        "shards",
        "video",
    },
    {"quant", "scene", "model_card"},
    {"runtime", "calibration", "stream"},
    {"pretrained"},
    {"eval", "export", "data", "auto_classes"},
    {
        "bench",
        "training",
        "scorecard",
        "sensitivity",
        "batch",
        "doctor",
        "app",
        "viewer",
    },  # all score what they or models make, so they stand above eval
    {"cli", "__main__"},
]
TIER = {unit: tier for tier, units in enumerate(TIERS) for unit in units}
# Shared by the whole lowest tier: camera conventions, measures of error, whole files and checkpoints, lists and values
# in messages, patterns, consoles, facts of the machine, the embedded model's name, what attention looks at, which
# frames a process has. Nothing else is between its units.
SHARED = {
    "ahead",
    "similarity",
    "cpus",
    "geometry",
    "global_attention",
    "quiet",
    "difference",
    "disk",
    "files",
    "embedded",
    "interrupts",
    "listing",
    "machine",
    "patterns",
    "placeholders",
    "plain_data",
    "encoding",
    "saves",
    "shards",
}
# Libraries that take seconds to import, print, or are missing on some machines: folders or files that may.
HOMES = {
    "triton": ("kernels/cuda/",),
    "torchao": ("quant/backends/", "bench/baselines.py"),
    "bitsandbytes": ("quant/backends/",),
    "scipy": ("eval/metrics/points.py", "stream/pose_graph.py"),
    "py7zr": ("data/archive.py",),
    "pycolmap": ("export/refine.py",),
    "rerun": ("export/rerun_file.py",),
    "av": ("video/",),
    "viser": ("viewer/server.py",),
    "gradio": ("app/page.py",),
}

Import = tuple[str, int, str]  # importing file, line, absolute dotted name of what is imported


def imports_of(path: Path, package: Path = PACKAGE) -> Iterator[Import]:
    """Every import in a file, relative ones resolved; `from a import b` is `a.b`."""
    here = path.relative_to(package.parent).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(here[: len(here) - node.level]) if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{prefix}.{alias.name}" for alias in node.names]
        for name in names:
            yield str(path.relative_to(package)), node.lineno, name


def unit_of(file: str) -> str:
    """The tier member a file belongs to: "quant/plan.py" -> "quant", "chart.py" -> "chart"."""
    return file.split("/")[0].removesuffix(".py")


def complaint(found: Import, package: str = "vggt_int8") -> str | None:
    """Why this import is not allowed; None if it is."""
    file, line, name = found
    source, parts = unit_of(file), name.split(".")
    if parts[0] in HOMES and not file.startswith(HOMES[parts[0]]):
        return f"{file}:{line}: {parts[0]} is imported outside {', '.join(HOMES[parts[0]])}"
    if parts[0] != package:
        return None
    target = parts[1] if len(parts) > 1 else "__init__"
    if target not in TIER:  # `from vggt_int8 import VGGTInt8`: the public names, which stand above all but the cli
        target = "__init__"
    if source == "__init__":
        return f"{file}:{line}: the package imports its own command line" if target in TIERS[-1] else None
    if target == "__init__":
        return None if TIER[source] == len(TIERS) - 1 else f"{file}:{line}: imports the whole package ({name})"
    if source == target or TIER[target] < TIER[source]:
        return None
    if TIER[source] == TIER[target] == 0 and target in SHARED:
        return None
    if (source, target) == ("__main__", "cli"):
        return None
    return f"{file}:{line}: {source} (tier {TIER[source]}) imports {name} (tier {TIER[target]})"


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_every_module_has_a_tier() -> None:
    units = {unit_of(str(path.relative_to(PACKAGE))) for path in sources()} - {"__init__"}
    assert units <= set(TIER), f"give these a tier: {sorted(units - set(TIER))}"


def test_imports_point_down() -> None:
    complaints = [text for path in sources() for found in imports_of(path) if (text := complaint(found))]
    assert complaints == []


@pytest.mark.parametrize(
    ("file", "name", "allowed"),
    [
        ("cli/run.py", "vggt_int8.export.write", True),
        ("cli/run.py", "vggt_int8.VGGTInt8", True),
        ("__main__.py", "vggt_int8.cli.main", True),
        ("export/ply.py", "vggt_int8.pretrained", True),
        ("scenes/render.py", "vggt_int8.geometry.project", True),
        ("quant/plan.py", "vggt_int8.quant.linear", True),
        ("model/vggt.py", "vggt_int8.quant.linear", False),
        ("model/vggt.py", "vggt_int8.images", False),
        ("quant/plan.py", "vggt_int8.VGGT", False),
        ("pretrained/model.py", "vggt_int8.export", False),
        ("runtime/graph.py", "vggt_int8.pretrained", False),
        ("pretrained/model.py", "vggt_int8.runtime", True),
        ("quant/linear.py", "vggt_int8.runtime", False),
        ("eval/metrics.py", "vggt_int8.export", False),
        ("__init__.py", "vggt_int8.cli", False),
        ("model/vggt.py", "triton", False),
        ("kernels/cuda/linear.py", "triton.language", True),
        ("kernels/cpu/linear.py", "triton.language", False),
        ("cli/run.py", "torchao.quantization", False),
        ("cli/bench.py", "vggt_int8.bench.sweep", True),
        ("bench/sweep.py", "vggt_int8.export.report", True),
        ("training/validation.py", "vggt_int8.eval.metrics", True),
        ("scorecard/pictures.py", "vggt_int8.export.depth_sheet", True),
        ("eval/active.py", "vggt_int8.scorecard.cache", False),
        ("scorecard/scores.py", "scipy.spatial", False),
        ("training/loop.py", "vggt_int8.bench.records", False),
        ("eval/metrics.py", "vggt_int8.training", False),
        ("scenes/render.py", "vggt_int8.eval.metrics", False),
        ("bench/sweep.py", "torchao.quantization", False),
        ("export/report.py", "vggt_int8.bench.records", False),
    ],
)
def test_the_rule_itself(file: str, name: str, allowed: bool) -> None:
    assert (complaint((file, 1, name)) is None) is allowed


def test_relative_and_local_imports_are_seen(tmp_path: Path) -> None:
    module = tmp_path / "vggt_int8" / "quant" / "plan.py"
    module.parent.mkdir(parents=True)
    module.write_text("from ..model import vggt\nfrom . import linear\ndef f():\n    import torchao.dtypes\n")
    names = [name for _, _, name in imports_of(module, tmp_path / "vggt_int8")]
    assert names == ["vggt_int8.model.vggt", "vggt_int8.quant.linear", "torchao.dtypes"]
