"""The figure holds the main variants, one line each, and only times that passed."""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from vggt_int8.bench.plot import write_plot
from vggt_int8.bench.records import Row
from vggt_int8.bench.table import OURS

MakeRow = Callable[..., Row]
SVG = "{http://www.w3.org/2000/svg}"


def test_lines_of_the_main_variants(tmp_path: Path, make_row: MakeRow) -> None:
    rows = [
        *(make_row("reference", frames, 60.0 + 15 * frames) for frames in (1, 10, 100)),
        *(make_row("bf16", frames, 40.0 * frames) for frames in (1, 10)),
        *(make_row("bf16-compiled", frames, 30.0 * frames) for frames in (1, 10)),
        make_row("bf16-compiled-graph", 1, 20.0),
        *(make_row(OURS, frames, 10.0 * frames) for frames in (1, 10)),
        make_row(OURS, 100, None),
    ]
    write_plot(rows, tmp_path / "figures" / "bench.svg")
    root = ET.parse(tmp_path / "figures" / "bench.svg").getroot()
    counts = [len(line.attrib["points"].split()) for line in root.iter(f"{SVG}polyline")]
    assert counts == [2, 3, 2] * 2  # time, then memory: ours, the reference, the faster compiled one of each count
    texts = [element.text for element in root.iter(f"{SVG}text")]
    for text in (OURS, "reference", "bf16 compiled", "Time per frame, NVIDIA H200", "ms per frame", "100"):
        assert text in texts
    assert "bf16" not in texts


def test_on_a_cpu_there_is_no_memory_to_draw(tmp_path: Path, make_row: MakeRow) -> None:
    write_plot([make_row("fp32", 1, 50.0, None), make_row(OURS, 1, 20.0, None)], tmp_path / "bench.svg")
    assert "Peak GPU memory" not in (tmp_path / "bench.svg").read_text()


def test_nothing_to_draw(tmp_path: Path, make_row: MakeRow) -> None:
    with pytest.raises(ValueError, match="no row has a time"):
        write_plot([make_row(OURS, 1, None)], tmp_path / "bench.svg")
    assert list(tmp_path.iterdir()) == []
