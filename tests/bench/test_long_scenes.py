"""The figure of long scenes, from the rows that are in the repository; and the ways that its benchmarks know."""

import pytest

from benchmarks.long_scenes import attention_of
from benchmarks.long_scenes_plot import ACCURACY, TIME, panels, rows_of, series_of
from vggt_int8.global_attention import GlobalAttention


def test_the_figure_shows_the_rows_that_are_there() -> None:
    accuracy, time = rows_of(ACCURACY), rows_of(TIME)
    ordered, unordered, times = panels(accuracy, time)
    for panel, kind in ((ordered, "ordered"), (unordered, "unordered")):
        exact = {row["views"]: row["auc_5"] for row in accuracy if row["kind"] == kind and row["way"] == "exact"}
        assert panel.series["exact"] == sorted(exact.items())
        assert {"K = 8", "K = 24", "K = 40"} <= panel.series.keys()
    fastest = min(
        row["ms"] for row in time if (row["frames"], row["way"], row["cap_gb"]) == (100, "keyframes:40", None)
    )
    assert times.series["K = 40"][0] == (100, fastest)
    assert [x for x, _ in times.series["K = 40"]] == sorted(x for x, _ in times.series["K = 40"])


def test_of_rows_at_one_place_the_last_counts() -> None:
    rows = [{"way": "early:9:40", "x": x, "y": y} for x, y in ((2, 5), (1, 3), (2, 4))]
    assert series_of(rows, "x", "y") == {"first 9 inside frames, K = 40": [(1, 3), (2, 4)]}


def test_exact_attention_comes_first() -> None:
    rows = [{"way": way, "x": 1, "y": 2} for way in ("early:9", "auto:3", "exact", "early:9:40")]
    assert list(series_of(rows, "x", "y"))[:2] == ["exact", "auto, K = 3"]


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("exact", "exact"),
        ("frames", "frames"),
        ("keyframes:3", "keyframes (K = 3)"),
        ("early:2", "layers: frames in 0-1, exact in 2-3"),
        ("early:2:3", "layers: frames in 0-1, keyframes (K = 3) in 2-3"),
    ],
)
def test_ways(way: str, said: str) -> None:
    keywords = attention_of(way, 4)
    assert str(GlobalAttention.of(4, keywords["global_attention"], keywords.get("keyframes"))) == said
    with pytest.raises(ValueError, match="is no way"):
        attention_of(f"{way}:1:1", 4)
