"""Bundle adjustment of a scene's cameras with COLMAP: the only file that imports pycolmap (the extra `export`).

Observations are the track head's, if the scene has tracks. Otherwise points are projected from image to image by depth
(see correspond.py) and matched in the images (see locate.py), since the positions that depth and cameras predict would
add no information. The first camera is fixed, and so are the scale, to which the network's depth belongs, and focal
lengths: if free, they drift (on a rendered scene with cameras 0.3 degrees off to 1.2, where fixed ones end at 0.1).

The new cameras are used only if they reduce the error of these observations, and if the depths of different images
still agree.
"""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vggt_int8.export.colmap import colmap_model, corner_intrinsics
from vggt_int8.export.colmap_files import ColmapModel, write_model
from vggt_int8.export.correspond import project
from vggt_int8.export.frames import frame_pool, in_order
from vggt_int8.export.locate import Locator
from vggt_int8.export.points import PointOptions, select_points
from vggt_int8.export.selection import Selection
from vggt_int8.geometry import quaternion_to_rotation
from vggt_int8.quiet import quiet_import
from vggt_int8.scene.scene import Scene

Doubles = NDArray[np.float64]
MISSING = "--refine needs pycolmap, which is not installed: pip install 'vggt-int8[export]'"
VISIBLE = 0.5  # of a track's visibility and confidence
_LEAST_VIEWS, _LEAST_TRACKS = 3, 50
_POINTS, _POINTS_PER_IMAGE = 10_000, 200  # whichever is more
# Of observations, in the mean and at least: with 90 an image, of places found to a tenth of a pixel, cameras of a
# rendered scene ended farther from the truth than they began; with 150 they did not.
_MEAN_SEEN, _LEAST_SEEN = 100, 20
_ROBUST_PIXELS = 0.25  # of the network's image: errors beyond count less (Cauchy)
_LOST = 0.2  # so many points fewer in several images are another model, not a better one
_DISAGREEMENT = 1.25  # times the error of points from depth: what the network says of different images goes together


@dataclass(frozen=True)
class Refined:
    """The scene with the cameras that are kept, and what happened, for the report."""

    scene: Scene
    summary: dict[str, Any]


def check_installed() -> None:
    """Raise ImportError, which says what to install, without pycolmap."""
    _pycolmap()


def refine_scene(scene: Scene, options: PointOptions) -> Refined:
    """`refine_cameras` with some of the points of a scene. Raises ValueError for one without cameras or points."""
    with frame_pool() as pool:
        selection = select_points(scene, options, pool)
        if selection is None or scene.extrinsic is None:
            raise ValueError(
                "cameras can be refined where there are cameras and points, and one of the heads did not run"
            )
        count = max(_POINTS, _POINTS_PER_IMAGE * len(scene))
        return refine_cameras(selection.at_most(count, pool, options.seed), pool)


def refine_cameras(selection: Selection, pool: ThreadPoolExecutor) -> Refined:
    """Adjust the cameras of `selection.scene`; without tracks, observations start from its points.

    summary: "observations" (tracks or pictures), "points" (their number of points), "before" and "after" (their mean
        reprojection error in pixels of the photographs), "model_before" and "model_after" (the same for the exported
        points), "kept" (whether the new cameras are used), and if not "reason".

    Raises ImportError without pycolmap.
    """
    pycolmap = _pycolmap()
    scene = selection.scene
    plain = colmap_model(scene, selection, pool)
    tracked = _tracked_model(plain.model, scene)
    model = _looked_up(plain.model, selection, pool) if tracked is None else tracked
    summary: dict[str, Any] = {"observations": "pictures" if tracked is None else "tracks", "points": len(model.points)}
    seen = np.bincount(model.seen_by, minlength=len(scene))
    if len(scene) < 2 or seen.mean() < _MEAN_SEEN or seen.min() < _LEAST_SEEN:
        few = f"too few observations: {seen.mean():.0f} an image, {seen.min()} in one"
        return Refined(scene, {**summary, "kept": False, "reason": few})
    summary["before"] = _mean_error(model)
    adjusted = _adjust(pycolmap, model, scene, pool)
    summary["after"] = _mean_error(adjusted)
    candidate = _with_poses(scene, adjusted.poses)
    again = colmap_model(candidate, replace(selection, scene=candidate), pool)
    summary["model_before"] = plain.summary["mean_reprojection_error"]
    summary["model_after"] = again.summary["mean_reprojection_error"]
    reason = _worse(summary, plain.summary["points_in_several_images"], again.summary["points_in_several_images"])
    if reason is not None:
        return Refined(scene, {**summary, "kept": False, "reason": reason})
    return Refined(candidate, {**summary, "kept": True})


def _looked_up(model: ColmapModel, selection: Selection, pool: ThreadPoolExecutor) -> ColmapModel:
    """The observations of `model` where the pictures have them; points that two images or more see."""
    scene = selection.scene
    if scene.depth is None:
        return _in_several_images(model, np.zeros(len(model.seen_point), np.bool_))
    assert scene.intrinsic is not None
    rotations, translations = _cameras(model.poses)
    locator = Locator(scene, rotations, translations, scene.intrinsic.numpy().astype(np.float64))
    starts = np.searchsorted(model.seen_point, np.arange(len(model.points)))
    source = model.seen_by[starts]  # a point's own image is its first observation
    own = source[model.seen_point] == model.seen_by
    offset = np.array([transform.offset for transform in scene.transforms])
    scale = np.array([transform.scale for transform in scene.transforms])
    places = model.seen_at * scale[model.seen_by] + offset[model.seen_by] - 0.5

    def look(index: int) -> list[tuple[NDArray[np.int64], Doubles, NDArray[np.bool_]]]:
        gray, found = locator.gray(index), []
        from_here = (source[model.seen_point] == index) & ~own
        for other in np.unique(model.seen_by[from_here]).tolist():
            numbers = np.flatnonzero(from_here & (model.seen_by == other))
            found.append((numbers, *locator.look_up(gray, index, other, places[numbers])))
        return found

    kept = own.copy()
    for pieces in in_order(pool, look, range(len(scene))):
        for numbers, found, ok in pieces:
            kept[numbers], places[numbers] = ok, found
    seen_at = (places + 0.5 - offset[model.seen_by]) / scale[model.seen_by]
    return _in_several_images(replace(model, seen_at=seen_at), kept)


def _in_several_images(model: ColmapModel, seen: NDArray[np.bool_]) -> ColmapModel:
    """The observations that are `seen`, of points that then have more than one: bundle adjustment wants two."""
    several = np.bincount(model.seen_point, weights=seen, minlength=len(model.points)) > 1
    kept, numbers = several[model.seen_point] & seen, np.cumsum(several) - 1
    return replace(
        model,
        points=model.points[several],
        colors=model.colors[several],
        errors=model.errors[several],
        seen_by=model.seen_by[kept],
        seen_at=model.seen_at[kept],
        seen_point=numbers[model.seen_point[kept]],
    )


def _worse(summary: dict[str, Any], joined_before: int, joined_after: int) -> str | None:
    """Why the new cameras are not better; None if they are."""
    if not summary["after"] < summary["before"]:
        return "the error of the observations did not fall"
    before, after = summary["model_before"], summary["model_after"]
    if before is not None and (after is None or after > _DISAGREEMENT * before):
        return "depth of different images would disagree much more"
    if joined_after < (1 - _LOST) * joined_before:
        return "fewer points are seen by several images"
    return None


def _adjust(pycolmap: Any, model: ColmapModel, scene: Scene, pool: ThreadPoolExecutor) -> ColmapModel:
    """The same observations with cameras and points after bundle adjustment."""
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), model, pool)
        reconstruction = pycolmap.Reconstruction(folder)
    options = pycolmap.BundleAdjustmentOptions()
    options.print_summary = False
    options.refine_focal_length = False
    options.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    options.ceres.loss_function_scale = _ROBUST_PIXELS / float(np.mean([t.scale for t in scene.transforms]))
    config = pycolmap.BundleAdjustmentConfig()
    for number in reconstruction.reg_image_ids():
        config.add_image(number)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    config.set_constant_rig_from_world_pose(1)  # the first image's: the world
    pycolmap.create_default_bundle_adjuster(options, config, reconstruction).solve()
    poses = []
    for number in range(1, len(scene) + 1):
        pose = reconstruction.image(number).cam_from_world()
        x, y, z, w = pose.rotation.quat
        poses.append([w, x, y, z, *pose.translation])
    points = np.array([reconstruction.point3D(number).xyz for number in range(1, len(model.points) + 1)])
    return _scaled(replace(model, poses=np.array(poses), points=points), model)


def _scaled(adjusted: ColmapModel, before: ColmapModel) -> ColmapModel:
    """About the first camera, so that points are as far from it as they were: the size of the world is no unknown."""
    rotation, translation = (part[0] for part in _cameras(before.poses))
    far, now = ((model.points @ rotation.T + translation)[:, 2] for model in (before, adjusted))
    ratio = float(np.median(far / now))
    center = -rotation.T @ translation
    rotations, translations = _cameras(adjusted.poses)
    centers = -np.einsum("sji,sj->si", rotations, translations)
    moved = -np.einsum("sij,sj->si", rotations, center + ratio * (centers - center))
    poses = np.concatenate([adjusted.poses[:, :4], moved], axis=1)
    return replace(adjusted, poses=poses, points=center + ratio * (adjusted.points - center))


def _mean_error(model: ColmapModel) -> float:
    """Mean reprojection error of a model's observations, in pixels of the photographs."""
    rotations, translations = _cameras(model.poses)
    intrinsics = np.zeros((len(model.parameters), 3, 3))
    intrinsics[:, [0, 1, 0, 1], [0, 1, 2, 2]] = model.parameters
    image = model.seen_by
    place, _ = project(
        model.points[model.seen_point],
        rotations[image],
        translations[image],
        intrinsics[np.array(model.camera_of)[image]],
    )
    return float(np.linalg.norm(place - model.seen_at, axis=-1).mean())


def _cameras(poses: Doubles) -> tuple[Doubles, Doubles]:
    """[S, 7] quaternion w x y z and translation -> rotations [S, 3, 3], translations [S, 3]."""
    rotation = quaternion_to_rotation(torch.from_numpy(poses[:, [1, 2, 3, 0]])).numpy()
    return rotation, poses[:, 4:]


def _with_poses(scene: Scene, poses: Doubles) -> Scene:
    """The scene with new poses; the first stays to the last bit."""
    assert scene.extrinsic is not None
    rotations, translations = _cameras(poses)
    extrinsic = torch.from_numpy(np.concatenate([rotations, translations[..., None]], axis=-1)).float()
    extrinsic[0] = scene.extrinsic[0]
    return replace(scene, extrinsic=extrinsic)


def _tracked_model(model: ColmapModel, scene: Scene) -> ColmapModel | None:
    """The cameras of `model` with the track head's observations; None without enough tracks.

    A point's position is the mean of what depth says where its track is seen.
    """
    if scene.tracks is None or scene.depth is None:
        return None
    places = scene.tracks.points.numpy().astype(np.float64)  # [S, N, 2]
    seen = ((scene.tracks.visibility > VISIBLE) & (scene.tracks.confidence > VISIBLE)).numpy()
    height, width = scene.size
    columns, rows = np.round(places).astype(np.int64)[..., 0], np.round(places).astype(np.int64)[..., 1]
    seen &= (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    total, count = np.zeros((places.shape[1], 3)), np.zeros(places.shape[1])
    rotations, translations = _cameras(model.poses)
    intrinsics = corner_intrinsics(scene).numpy()
    colors = np.zeros((places.shape[1], 3), np.uint8)
    original = np.empty_like(places)
    for index in range(len(scene)):
        offset, scale = np.array(scene.transforms[index].offset), np.array(scene.transforms[index].scale)
        original[index] = (places[index] + 0.5 - offset) / scale
        at = (rows[index].clip(0, height - 1), columns[index].clip(0, width - 1))
        seen[index] &= scene.content(index).numpy()[at]
        intrinsic = intrinsics[index]
        depth = scene.depth[index].numpy()[at].astype(np.float64)
        rays = np.ones((len(depth), 3))
        rays[:, :2] = (original[index] - intrinsic[:2, 2]) / intrinsic.diagonal()[:2]
        here = seen[index]
        total[here] += ((rays * depth[:, None] - translations[index]) @ rotations[index])[here]
        count[here] += 1
        if index == 0:
            colors = scene.colors[0].numpy()[at]
    kept = np.flatnonzero(seen.sum(axis=0) >= _LEAST_VIEWS)
    if len(kept) < _LEAST_TRACKS:
        return None
    point, image = np.nonzero(seen[:, kept].T)  # in the order of points
    return replace(
        model,
        points=total[kept] / count[kept, None],
        colors=colors[kept],
        errors=np.zeros(len(kept)),
        seen_by=image,
        seen_at=original[image, kept[point]],
        seen_point=point,
    )


def _pycolmap() -> Any:
    try:
        with quiet_import():
            import pycolmap
    except ImportError as error:
        raise ImportError(MISSING) from error
    return pycolmap
