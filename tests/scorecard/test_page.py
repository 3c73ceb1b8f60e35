"""A data set of another kind: where only cameras are known, only cameras are scored, and the report is whole."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vggt_int8.geometry import camera_to_pose_encoding
from vggt_int8.scorecard.cache import Predictions
from vggt_int8.scorecard.data import RenderedScenes, TrueScene
from vggt_int8.scorecard.page import page
from vggt_int8.scorecard.scores import Protocol
from vggt_int8.scorecard.summary import summarize
from vggt_int8.scorecard.tables import kind_of, markdown

SIZE = (16, 24)


class CamerasAlone:
    """An adapter: the second scene has no truth at all."""

    def __init__(self) -> None:
        whole = list(RenderedScenes(2, 3, SIZE, "free"))
        first = replace(whole[0], name="<one> & only", depth=None, valid=None)
        self.scenes = [first, TrueScene("none", whole[1].images)]

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[TrueScene]:
        return iter(self.scenes)

    def identity(self) -> dict[str, Any]:
        return {"kind": "cameras alone"}


@pytest.fixture
def rows(tmp_path: Path) -> list[Predictions]:
    """The truth, and the truth with a camera that is moved; the second has INT8 layers."""
    truth = CamerasAlone().scenes[0]
    assert truth.extrinsic is not None
    assert truth.intrinsic is not None
    found = []
    for label, layers in (("fp32", []), ("int8 | <b>", ["aggregator.x"])):
        row = Predictions(tmp_path / str(len(found)), label, {"label": label})
        sqnr = {"a.1": 30.0, "a.2": "inf"} if layers else None
        ranges = {"a.1.fc1": [4.0, 2.0], "a.2.fc1": [142.0, 3.0], "a.1.proj": [1.5, 1.25]}
        calibration = {"observer": "minmax", "images": 7, "ranges": ranges} if layers else None
        row.write_facts({"complete": True, "int8_layers": layers, "sqnr_db": sqnr, "calibration": calibration})
        pose = camera_to_pose_encoding(truth.extrinsic, truth.intrinsic, SIZE)
        pose[1, 0] += 0.2 * bool(layers)
        for index in range(2):
            row.write(index, {"pose_enc": pose})
        found.append(row)
    return found


def document(rows: list[Predictions]) -> dict[str, Any]:
    facts = {
        "machine": {"cpu": "a CPU", "gpu": None},
        "versions": {"torch": "2"},
        "created": "now",
        "command_line": "vggt-int8 eval 'a<b'",
        "search": "all distances",
    }
    data = CamerasAlone()
    protocol = {"points": 10, "threshold": 0.05, "icp": False}
    scored = summarize(rows, data, Protocol())
    return {**facts, "data": data.identity(), "protocol": protocol, "scenes": len(data), "rows": scored}


def test_what_is_known_is_scored(rows: list[Predictions]) -> None:
    plain, moved = document(rows)["rows"]
    assert plain["scenes"]["auc_3"] == [100.0, None]
    assert plain["scores"]["auc_3"] == 100, "the mean of the scenes that have it"
    assert moved["scores"]["auc_3"] < 100
    assert moved["differences"]["auc_3"]["value"] == moved["scores"]["auc_3"] - 100
    assert "abs_rel" not in moved["scores"]
    assert moved["scores"]["center_percent_from_first"] > 0


def test_the_page_is_whole_and_escapes_what_it_shows(rows: list[Predictions]) -> None:
    text = page(document(rows), rows, CamerasAlone())
    assert "&lt;one&gt; &amp; only" in text
    assert "int8 | &lt;b&gt;" in text
    assert "<code>vggt-int8 eval &#x27;a&lt;b&#x27;</code>" in text
    assert "<img" not in text
    assert "Difference from fp32" in text
    assert "int8 \\| <b>" in markdown(document(rows))


def test_calibrated_ranges_are_shown(rows: list[Predictions]) -> None:
    whole = document(rows)
    text = markdown(whole)
    assert "| a.*.fc1 | 4 … 142 \\| 2 … 3 |" in text
    assert "| a.*.proj | 1.5 \\| 1.25 |" in text
    assert "observer minmax, 7 images" in text
    assert "Calibrated ranges" not in markdown(whole, layers=False)
    shown = page(whole, rows, CamerasAlone())
    assert shown.count("<svg") == 2
    assert "special tokens" in shown
    assert "Calibrated ranges" not in page(document(rows[:1]), rows[:1], CamerasAlone())


def test_a_quantizer_that_does_nothing_is_refused(rows: list[Predictions]) -> None:
    for index in range(2):
        rows[1].write(index, rows[0].read(index))
    with pytest.raises(RuntimeError, match="was not active"):
        document(rows)


def test_one_row_has_nothing_to_differ_from(rows: list[Predictions]) -> None:
    text = markdown(document(rows[:1]))
    assert "## Difference" not in text
    assert "## Scores against the truth" in text


def test_kinds_of_layers() -> None:
    assert kind_of("aggregator.frame_blocks.11.mlp.fc1") == "aggregator.frame_blocks.*.mlp.fc1"
    assert kind_of("depth_head.scratch.refinenet3.resConfUnit2.conv1") == (
        "depth_head.scratch.refinenet*.resConfUnit*.conv*"
    )
