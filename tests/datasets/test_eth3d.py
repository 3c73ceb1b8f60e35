"""From the download to the scores, on a scene in ETH3D's layout whose geometry is known."""

import json
import re
import shutil
from pathlib import Path

import py7zr
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.datasets.eth3d_scene import MASKED, MASKS, PORTRAIT, VIEWS, Truth, write_archives, write_scene
from tests.datasets.server import Faults, serve
from tests.kills import killed_before
from vggt_int8.cli.data import ETH3D_PARTS, ETH3D_SCENES
from vggt_int8.data import eth3d
from vggt_int8.data.archive import ArchiveError
from vggt_int8.geometry import camera_center, camera_to_pose_encoding, relative_pose
from vggt_int8.model.config import VGGTConfig
from vggt_int8.scorecard import eth3d as scored
from vggt_int8.scorecard.captured import PosedScenes, evenly
from vggt_int8.scorecard.eth3d import Eth3dScenes
from vggt_int8.scorecard.scores import Protocol, score_scene
from vggt_int8.scorecard.tables import METRICS

CONFIG = VGGTConfig(img_size=112)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    """The folder of a data set with one scene. Read only."""
    folder = tmp_path_factory.mktemp("eth3d")
    return folder, write_scene(folder / "pipes")


@pytest.fixture(scope="module")
def site(made: tuple[Path, Truth]) -> Path:
    """The scene's archives."""
    write_archives(made[0] / "pipes", made[0].parent / "site")
    return made[0].parent / "site"


def test_the_lists_of_the_command_are_those_of_the_data_set() -> None:
    assert ETH3D_SCENES == eth3d.SCENES
    assert tuple(eth3d.PARTS) == ETH3D_PARTS
    assert len(eth3d.SCENES) == 13


@pytest.mark.slow
def test_what_is_fetched_is_the_scene_and_is_fetched_once(
    made: tuple[Path, Truth], site: Path, tmp_path: Path, cli
) -> None:
    folder, faults = tmp_path / "data", Faults(breaks=[1000, 5000])
    with serve(site, faults) as address:
        parts = ",".join(eth3d.PARTS)
        command = ("data", "eth3d", "--scenes", "pipes", "--parts", parts, "-o", folder, "--site", address)
        assert "5 archives fetched" in cli(*command)
        files = {path.relative_to(made[0]): path.read_bytes() for path in made[0].rglob("*") if path.is_file()}
        there = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert files == {name: content for name, content in there.items() if name != Path(eth3d.STATE)}
        faults.asked.clear()
        assert "0 archives fetched" in cli(*command)
        assert faults.asked == []
        (folder / "pipes" / "dslr_calibration_jpg" / "cameras.txt").unlink()
        assert json.loads(cli(*command, "--json"))["fetched"] == ["pipes_dslr_jpg.7z"]


def test_all_scenes_are_meant_beside_others_too(site: Path, tmp_path: Path, cli) -> None:
    faults = Faults(statuses=[404])
    with serve(site, faults) as address:
        told = cli("data", "eth3d", "--scenes", "pipes, all", "-o", tmp_path, "--site", address, code=1)
    assert "courtyard_dslr_undistorted.7z" in told


def test_an_archive_that_has_changed_is_told(site: Path, tmp_path: Path, cli) -> None:
    folder, changed = tmp_path / "data", tmp_path / "site"
    shutil.copytree(site, changed)
    with serve(changed, Faults()) as address:
        command = ("data", "eth3d", "--parts", "images", "-o", folder, "--site", address)
        cli(*command)
        shutil.copy(site / "pipes_dslr_jpg.7z", changed / "pipes_dslr_undistorted.7z")
        shutil.rmtree(folder / "pipes")
        assert "sha256" in cli(*command, code=1)


def test_a_kept_archive_that_has_changed_is_told(site: Path, tmp_path: Path, cli) -> None:
    with serve(site, Faults()) as address:
        command = ("data", "eth3d", "--parts", "images", "-o", tmp_path, "--site", address, "--keep")
        cli(*command)
        shutil.rmtree(tmp_path / "pipes")
        shutil.copy(site / "pipes_dslr_jpg.7z", tmp_path / "pipes_dslr_undistorted.7z")
        assert "move it away" in cli(*command, code=1)
        assert not (tmp_path / "pipes").exists()
        (tmp_path / eth3d.STATE).write_text("[]")
        assert "is damaged" in cli(*command, code=2)


def test_an_archive_that_is_packed_too_well_is_no_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with py7zr.SevenZipFile(tmp_path / "pipes_dslr_undistorted.7z", "w") as file:
        file.writestr(bytes(500_000), "pipes/a")
    packed = (tmp_path / "pipes_dslr_undistorted.7z").stat().st_size
    monkeypatch.setattr(eth3d, "SMALL", 499_999)
    with pytest.raises(ArchiveError, match=r"would unpack to 500,000 bytes; at most 499,999 .* Remove it"):
        eth3d.fetch(eth3d.archives(["pipes"], ["images"]), tmp_path)
    monkeypatch.setattr(eth3d, "MOST_TIMES", 500_000 // packed + 1)
    assert len(eth3d.fetch(eth3d.archives(["pipes"], ["images"]), tmp_path)) == 1


@pytest.mark.slow
def test_a_download_that_is_killed_before_any_step(tmp_path: Path) -> None:
    """What is noted as there is there, whole; and the same command brings the rest and leaves nothing beside it."""
    site, target = tmp_path / "site", tmp_path / "data"
    site.mkdir()
    contents = {"pipes/a": b"a" * 999, "pipes/b/c": b"c" * 99}
    with py7zr.SevenZipFile(site / "pipes_dslr_undistorted.7z", "w") as file:
        for name, content in contents.items():
            file.writestr(content, name)
    wanted = eth3d.archives(["pipes"], ["images"])
    with serve(site, Faults()) as address:

        def fetch() -> list[eth3d.Archive]:
            return eth3d.fetch(wanted, target, site=address)

        for moment in range(100):
            shutil.rmtree(target, ignore_errors=True)
            killed = killed_before(moment, fetch)
            noted = bool(eth3d._state(target))
            assert not noted or {name: (target / name).read_bytes() for name in contents} == contents, moment
            assert bool(fetch()) is not noted
            left = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
            assert left == {*contents, eth3d.STATE}, moment
            if not killed:
                break
    assert moment > 9


def test_unknown_scenes_and_parts_are_named(tmp_path: Path, cli) -> None:
    assert "no scene 'pipe' (did you mean 'pipes'?)" in cli("data", "eth3d", "--scenes", "pipe", "-o", tmp_path, code=2)
    assert "no part" in cli("data", "eth3d", "--parts", "image", "-o", tmp_path, code=2)


@pytest.mark.parametrize(
    ("count", "most", "chosen"), [(6, None, range(6)), (6, 9, range(6)), (6, 3, (0, 2, 5)), (6, 1, [0])]
)
def test_views_are_evenly_spread(count: int, most: int | None, chosen: object) -> None:
    assert evenly(count, most) == list(chosen)


@pytest.mark.parametrize("scene", eth3d.SCENES)
def test_images_that_are_written_down(scene: str) -> None:
    few = {"meadow": 15, "pipes": 14, "terrace": 23}
    for views, count in ((10, 10), (25, few.get(scene, 25))):
        names = eth3d.listed_views(scene, views)
        assert names == sorted(set(names))
        assert len(names) == count
        assert all(re.fullmatch(r"DSC_\d{4}\.JPG", name) for name in names)
    assert eth3d.listed_views(scene, 9) is None
    assert eth3d.listed_views(scene, None) is None


def test_images_that_are_written_down_are_taken(made: tuple[Path, Truth], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"no DSC_0634\.JPG, .* --views 10 takes of ETH3D's pipes"):
        Eth3dScenes(made[0], CONFIG, views=10)
    names = made[1].names[1:4]
    monkeypatch.setattr(scored, "listed_views", lambda scene, views: names if (scene, views) == ("pipes", 10) else None)
    data = Eth3dScenes(made[0], CONFIG, views=10)
    assert [Path(name).name for name in data.identity()["images"]["pipes"]] == names
    (scene,) = data
    torch.testing.assert_close(scene.extrinsic, around_the_first(made[1].extrinsic[1:4]), atol=1e-5, rtol=0)


def around_the_first(extrinsic: Tensor) -> Tensor:
    """The same cameras in a world that begins at the first one."""
    moved = extrinsic.clone()
    moved[..., 3] += extrinsic[..., :3] @ camera_center(extrinsic[0])
    return moved


def scene_of(made: tuple[Path, Truth], views: int | None = None):
    (scene,) = Eth3dScenes(made[0], CONFIG, views=views)
    return scene


def test_cameras_are_those_of_the_truth(made: tuple[Path, Truth]) -> None:
    scene, truth = scene_of(made), made[1]
    assert scene.images.shape == (VIEWS, 3, 84, 112)
    torch.testing.assert_close(scene.extrinsic, around_the_first(truth.extrinsic), atol=1e-5, rtol=0)
    for view in range(VIEWS):
        width = truth.intrinsics[view][0, 2] * 2
        focal = truth.intrinsics[view][0, 0] * 112 / width
        torch.testing.assert_close(scene.intrinsic[view, 0, 0], focal, rtol=1e-5, atol=0)
    up = [(-extrinsic[1, :3]).tolist() for extrinsic in scene.extrinsic]
    assert abs(torch.tensor(up[PORTRAIT]) @ torch.tensor(up[PORTRAIT - 1])) < 0.7  # it lies on its side


def test_depth_is_that_of_the_undistorted_images(made: tuple[Path, Truth]) -> None:
    """Against rays through the same pixels: within what samples anywhere in a pixel differ, without a shift."""
    scene, truth = scene_of(made), made[1]
    for view in range(VIEWS):
        rows, columns = scene.valid[view].nonzero().unbind(-1)
        assert len(rows) > 0.05 * scene.valid[view].numel()
        k, own = scene.intrinsic[view], truth.intrinsics[view]

        def off(right: float, down: float, k=k, own=own, view=view, rows=rows, columns=columns) -> Tensor:
            rays = torch.stack([(columns + right - k[0, 2]) / k[0, 0], (rows + down - k[1, 2]) / k[1, 1]], dim=-1)
            exact = truth.depth_at(view, rays * own[[0, 1], [0, 1]] + own[:2, 2])
            return ((scene.depth[view][rows, columns] - exact) / exact).abs()

        here = off(0, 0)
        assert here.median() < 5e-3
        assert (here < 0.03).float().mean() > 0.85  # the others lie at edges
        shifted = [off(right, down) for right, down in ((0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5))]
        near = torch.stack([here, *shifted]).max(dim=0).values < 0.05  # no edge between
        assert all(here[near].square().mean() < others[near].square().mean() for others in shifted)


def test_depth_under_a_mask_is_none(made: tuple[Path, Truth], tmp_path: Path) -> None:
    """Where the scan does not fit, that is; where colours alone differ it counts."""
    valid = scene_of(made).valid
    assert not valid[MASKED, :, :30].any()
    assert valid[MASKED, :, 40:48].any()
    assert valid[MASKED - 1, :, :30].any()
    shutil.copytree(made[0], tmp_path / "data")
    mask = tmp_path / "data" / "pipes" / MASKS / made[1].names[MASKED].replace(".JPG", ".png")
    identity = Eth3dScenes(tmp_path / "data", CONFIG).identity()
    for image, says in ((Image.new("L", (134, 99)), "134 x 99 pixels"), (Image.new("L", (134, 100), 4), "the value 4")):
        image.save(mask)
        with pytest.raises(ValueError, match=says):
            list(Eth3dScenes(tmp_path / "data", CONFIG))
    assert Eth3dScenes(tmp_path / "data", CONFIG).identity() != identity
    mask.write_bytes(mask.read_bytes()[:60])
    with pytest.raises(ValueError, match=rf"{mask.name} is damaged, remove it and fetch the masks anew"):
        list(Eth3dScenes(tmp_path / "data", CONFIG))
    mask.unlink()
    (scene,) = Eth3dScenes(tmp_path / "data", CONFIG)
    assert scene.valid[MASKED, :, :30].any()


def perfect(made: tuple[Path, Truth], views: int | None = None) -> tuple[dict[str, Tensor], object]:
    """What a network without faults says: in its own scale, in the frame of its first camera."""
    scene, truth = scene_of(made, views), made[1]
    scale = 0.37
    first = torch.stack([relative_pose(scene.extrinsic[0], extrinsic) for extrinsic in scene.extrinsic])
    first[..., 3] *= scale
    grid = torch.stack(torch.meshgrid(torch.arange(112.0), torch.arange(84.0), indexing="xy"), -1).reshape(-1, 2)
    depth = []
    for view, index in enumerate(evenly(VIEWS, views)):
        k, own = scene.intrinsic[view], truth.intrinsics[index]
        rays = (grid - k[:2, 2]) / k[[0, 1], [0, 1]]
        depth.append(scale * truth.depth_at(index, rays * own[[0, 1], [0, 1]] + own[:2, 2]).reshape(84, 112))
    return {
        "pose_enc": camera_to_pose_encoding(first, scene.intrinsic, (84, 112)),
        "depth": torch.stack(depth)[..., None],
    }, scene


def test_a_network_without_faults_scores_as_one(made: tuple[Path, Truth]) -> None:
    outputs, scene = perfect(made)
    scores = score_scene(outputs, scene, Protocol())
    assert set(scores) == set(METRICS) - {"normal_consistency"}  # single pixels are known, no surfaces
    assert scores["auc_3"] > 99
    assert abs(scores["focal_ratio"] - 1) < 1e-4
    assert scores["abs_rel"] < 0.01
    assert scores["scan_accuracy_10"] > 97
    assert scores["scan_completeness_10"] > 90
    assert scores["scan_f_1"] <= scores["scan_f_2"] <= scores["scan_f_5"] <= scores["scan_f_50"]
    assert scores["scan_f_50"] > 99


def test_faults_show(made: tuple[Path, Truth]) -> None:
    outputs, scene = perfect(made, 3)
    good = score_scene(outputs, scene, Protocol())
    turned = outputs | {"pose_enc": outputs["pose_enc"].clone()}
    turned["pose_enc"][1, 3:7] = torch.tensor([0.0, 0.1, 0.0, 1.0])
    assert score_scene(turned, scene, Protocol())["auc_5"] < good["auc_5"] - 30
    bumpy = outputs | {"depth": outputs["depth"] * (1 + 0.05 * torch.randn(3, 84, 112, 1).clamp(-2, 2))}
    worse = score_scene(bumpy, scene, Protocol())
    assert worse["abs_rel"] > good["abs_rel"] + 0.02
    assert worse["scan_accuracy_5"] < good["scan_accuracy_5"] - 10


def test_scenes_without_depth_and_scans_give_poses(made: tuple[Path, Truth], tmp_path: Path) -> None:
    for part in ("images/dslr_images_undistorted", "dslr_calibration_undistorted"):
        shutil.copytree(made[0] / "pipes" / part, tmp_path / "pipes" / part)
    (scene,) = Eth3dScenes(tmp_path / "pipes", CONFIG)
    assert scene.depth is None
    assert scene.scan is None
    outputs, _ = perfect(made)
    assert set(score_scene(outputs, scene, Protocol())) >= {"auc_3", "ate", "focal_ratio"}


def test_what_is_missing_or_damaged_is_named(made: tuple[Path, Truth], tmp_path: Path) -> None:
    shutil.copytree(made[0], tmp_path / "data")
    scene = tmp_path / "data" / "pipes"
    identity = Eth3dScenes(scene, CONFIG).identity()
    depth = scene / "ground_truth_depth" / "dslr_images" / made[1].names[0]
    depth.write_bytes(depth.read_bytes()[:-4])
    assert Eth3dScenes(scene, CONFIG).identity() != identity
    with pytest.raises(ValueError, match=r"bytes, not the 136 x 100 floats"):
        list(Eth3dScenes(scene, CONFIG))
    (scene / "images" / "dslr_images_undistorted" / made[1].names[1]).unlink()
    with pytest.raises(FileNotFoundError, match=made[1].names[1]):
        Eth3dScenes(scene, CONFIG)
    with pytest.raises(FileNotFoundError, match="no COLMAP model"):
        Eth3dScenes(tmp_path, CONFIG)


@pytest.mark.slow
def test_eval_scores_a_model_on_it(made: tuple[Path, Truth], bare_checkpoint: Path, tmp_path: Path, cli) -> None:
    arguments = ("eval", bare_checkpoint, "-r", "int8_dynamic", "--views", 3, "--device", "cpu", "--points", 100)
    text = cli(*arguments, "--data", f"eth3d:{made[0]}", "-o", tmp_path / "eth3d")
    assert "eth3d scenes pipes; 3 views of each" in text
    assert "scan F-score at 5 cm" in text
    document = json.loads((tmp_path / "eth3d" / "scores.json").read_text())
    assert {"auc_30", "abs_rel", "scan_accuracy_1", "scan_completeness_50"} <= document["rows"][1]["scores"].keys()


def test_any_colmap_folder_gives_poses(made: tuple[Path, Truth]) -> None:
    outputs, eth3d_scene = perfect(made, 3)
    (scene,) = PosedScenes(made[0] / "pipes", CONFIG, views=3)
    assert torch.equal(scene.extrinsic, eth3d_scene.extrinsic)
    assert scene.depth is None
    assert score_scene(outputs, scene, Protocol())["auc_3"] > 99


def test_world_and_cameras_agree(made: tuple[Path, Truth]) -> None:
    """The scans' points lie on what the views see: their frames are the same."""
    scene = scene_of(made)
    distance = (scene.scan[:, None] - camera_center(scene.extrinsic)[None]).norm(dim=-1).min(dim=1).values
    assert len(scene.scan) > 1000
    assert distance.max() < 20
