"""Tracks as a table and as pictures, and the grid of points that they begin from."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vggt_int8.export import Scene, Tracks, write_scene
from vggt_int8.export.tracks import query_grid


@pytest.fixture
def tracked(scene: Scene) -> Scene:
    points = torch.tensor(
        [[[4.0, 6.0], [20.0, 10.0], [2.0, 2.0]], [[12.0, 6.0], [30.0, 20.0], [9.0, 2.0]]]
    )  # [S, N, 2]
    visibility = torch.tensor([[0.9, 0.8, 0.1], [0.7, 0.1, 0.1]])
    return replace(scene, colors=torch.zeros_like(scene.colors), tracks=Tracks(points, visibility, visibility / 2))


def test_the_table_is_in_pixels_of_the_photographs(tmp_path: Path, tracked: Scene) -> None:
    summary = write_scene(tmp_path, tracked, ("tracks",))
    assert summary["tracks"] == {"points": 3, "seen_in_all_images": 1}
    rows = list(csv.DictReader((tmp_path / "tracks.csv").open(encoding="utf-8")))
    assert [(row["track"], row["image"], row["name"]) for row in rows] == [
        (str(track), str(image), f"000{image}_1") for image in range(2) for track in range(3)
    ]
    # The first image is half the photograph; the second a tenth, behind 8 columns of padding.
    assert [(float(row["x"]), float(row["y"])) for row in rows] == [
        *((9, 13), (41, 21), (5, 5), (45, 65), (225, 205), (15, 25))
    ]
    assert (float(rows[3]["visibility"]), float(rows[3]["confidence"])) == (0.7, 0.35)


def test_pictures_show_points_where_they_are(tmp_path: Path, tracked: Scene) -> None:
    write_scene(tmp_path, tracked, ("tracks",))
    with Image.open(tmp_path / "tracks/0001_1.jpg") as picture:
        levels = np.asarray(picture.convert("L"))
    factor = levels.shape[1] // 42
    assert levels[round(6.5 * factor), round(12.5 * factor)] > 50, "a dot"
    assert levels[round(6.5 * factor), round(8.5 * factor)] > 50, "its trail"
    assert levels[round(20.5 * factor), round(30.5 * factor)] < 30, "hidden: a ring, empty inside"
    assert (levels > 50).sum() < 0.05 * levels.size


def test_without_tracks_the_way_to_them_is_said(tmp_path: Path, scene: Scene) -> None:
    with pytest.raises(ValueError, match="run again with --tracks"):
        write_scene(tmp_path, scene, ("tracks",))


@pytest.mark.parametrize("count", [1, 7, 64, 1000])
def test_the_grid_lies_on_what_the_image_shows(scene: Scene, count: int) -> None:
    content = scene.content(1)  # 26 of 42 columns
    points = query_grid(content, count)
    assert 0.6 * count <= len(points) <= count
    assert bool(content[points[:, 1].round().long(), points[:, 0].round().long()].all())
    with pytest.raises(ValueError, match="shows nothing"):
        query_grid(torch.zeros_like(content), count)
