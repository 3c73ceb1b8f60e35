"""`write_scene` as a whole: which files appear, that their numbers are the prediction's, and what is left out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vggt_int8.export import SCENE_ENTRIES, Scene, staged_folder, write_scene
from vggt_int8.export.color import NO_DATA
from vggt_int8.images import ImageTransform
from vggt_int8.model.vggt import VGGTOutput


def write(out: Path, pred: dict[str, Tensor], transforms: list[ImageTransform], names: list[str]) -> dict:
    with staged_folder(out, entries=SCENE_ENTRIES) as folder:
        return write_scene(folder, Scene.from_prediction(pred, transforms, names))


def test_all_files_appear(
    tmp_path: Path, pred: dict[str, Tensor], transforms: list[ImageTransform], names: list[str]
) -> None:
    out = tmp_path / "out"
    summary = write(out, pred, transforms, names)
    maps = [
        f"{kind}/000{i}_1.{suffix}" for kind in ("confidence", "depth") for i in (0, 1) for suffix in ("npy", "png")
    ]
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert found == sorted(["cameras.json", "points.ply", "sheet.jpg", *maps])
    json.dumps(summary, allow_nan=False)
    assert summary["cameras"] == {"images": 2}
    assert summary["points"]["written"] > 0


def test_maps_hold_the_prediction_and_pictures_show_it(
    tmp_path: Path, pred: dict[str, Tensor], transforms: list[ImageTransform], names: list[str]
) -> None:
    summary = write(tmp_path / "out", pred, transforms, names)
    for i in range(2):
        depth = np.load(tmp_path / f"out/depth/000{i}_1.npy")
        assert depth.dtype == np.float32
        assert np.array_equal(depth, pred["depth"][0, i, ..., 0].numpy())
        confidence = np.load(tmp_path / f"out/confidence/000{i}_1.npy")
        assert np.array_equal(confidence, pred["depth_conf"][0, i].numpy())
        with Image.open(tmp_path / f"out/depth/000{i}_1.png") as picture:
            assert picture.size == (42, 28)
            assert f"{summary['depth']['near']:.6g} (bright, warm)" in picture.text["Description"]
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        padding = ~transforms[i].content_mask().numpy()
        assert (pixels[padding] == NO_DATA).all()
        # Depth grows with the column: the left of the content is brighter than the right.
        columns = np.flatnonzero(~padding[0])
        assert pixels[0, columns[0]].sum() > pixels[0, columns[-1]].sum()


def test_the_output_of_the_network_is_read_like_a_dict(
    tmp_path: Path, pred: dict[str, Tensor], transforms: list[ImageTransform], names: list[str]
) -> None:
    del pred["world_points"], pred["world_points_conf"]
    from_dict = write(tmp_path / "a", pred, transforms, names)
    assert write(tmp_path / "b", VGGTOutput(**pred), transforms, names) == from_dict


def test_progress_counts_the_frames_of_every_format(
    tmp_path: Path, pred: dict[str, Tensor], transforms: list[ImageTransform], names: list[str]
) -> None:
    calls: list[tuple[int, int]] = []
    scene = Scene.from_prediction(pred, transforms, names)
    write_scene(tmp_path, scene, on_frame=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_heads_that_did_not_run_are_reported_not_written(
    tmp_path: Path, pred: dict[str, Tensor], transforms: list[ImageTransform], names: list[str]
) -> None:
    only_points = {key: pred[key] for key in ("images", "world_points", "world_points_conf")}
    summary = write(tmp_path / "out", only_points, transforms, names)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["points.ply"]
    assert (summary["cameras"], summary["depth"], summary["confidence"]) == (None, None, None)
    assert summary["points"]["written"] > 0


def test_half_precision_images_and_maps_are_written_as_fp32(
    tmp_path: Path, pred: dict[str, Tensor], transforms: list[ImageTransform], names: list[str]
) -> None:
    pred = {key: value.bfloat16() for key, value in pred.items()}
    write(tmp_path / "out", pred, transforms, names)
    assert np.load(tmp_path / "out/depth/0000_1.npy").dtype == np.float32


def test_wrong_shapes_are_refused_and_leave_nothing(
    tmp_path: Path, pred: dict[str, Tensor], transforms: list[ImageTransform], names: list[str]
) -> None:
    with pytest.raises(ValueError, match="2 images, 2 transforms, 1 names and 2 files"):
        write(tmp_path / "out", pred, transforms, names[:1])
    two_scenes = {key: torch.cat([value, value]) for key, value in pred.items()}
    with pytest.raises(ValueError, match="2 scenes"):
        write(tmp_path / "out", two_scenes, transforms, names)
    assert not list(tmp_path.iterdir())


def test_awkward_names_become_safe_file_names(
    tmp_path: Path, pred: dict[str, Tensor], transforms: list[ImageTransform]
) -> None:
    write(tmp_path / "out", pred, transforms, ["../..", "照片" * 100 + ".jpg"])
    stems = sorted(path.name for path in (tmp_path / "out/depth").glob("*.npy"))
    assert stems == ["0000_...npy", f"0001_{'照片' * 25}.npy"]
