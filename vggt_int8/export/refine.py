"""Bundle adjustment of a scene's cameras by COLMAP: the one file that needs pycolmap (the extra `export`).

Observations are the track head's, where the scene has tracks: they look at the pictures again, so they can tell of a
camera that is wrong. Otherwise they are points carried from image to image by depth (see correspond.py), which only
reconcile what the network says of different images. The first camera stays, and so does the scale: depth and points of
the network belong to it.

Cameras are taken over only if that makes neither these observations nor the exported points worse.
"""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vggt_int8.export.colmap import colmap_model, corner_intrinsic
from vggt_int8.export.colmap_files import ColmapModel, write_model
from vggt_int8.export.correspond import project
from vggt_int8.export.points import Selection
from vggt_int8.geometry import quaternion_to_rotation
from vggt_int8.quiet import quiet_import
from vggt_int8.scene.scene import Scene

Doubles = NDArray[np.float64]
MISSING = "--refine needs pycolmap, which is not installed: pip install 'vggt-int8[export]'"
VISIBLE = 0.5  # of a track's visibility and confidence
_LEAST_VIEWS, _LEAST_POINTS = 3, 20
_ROBUST_PIXELS = 1.0  # of the network's image: errors beyond count less (Cauchy)
_LOST = 0.05  # so many points fewer in several images are another model, not a better one


@dataclass(frozen=True)
class Refined:
    """The scene with the cameras that are kept, and what happened, for the report."""

    scene: Scene
    summary: dict[str, Any]


def check_installed() -> None:
    """Raise ImportError, which says what to install, without pycolmap."""
    _pycolmap()


def refine_cameras(selection: Selection, pool: ThreadPoolExecutor) -> Refined:
    """Adjust the cameras of `selection.scene`; its points, some 10,000, are where observations begin without tracks.

    summary: "observations" (tracks or reprojections), "before" and "after" (mean reprojection error of these in pixels
    of the photographs), "model_before" and "model_after" (the same for the points that are exported), "kept" (whether
    the new cameras are), and if not "reason". Raises ImportError without pycolmap.
    """
    pycolmap = _pycolmap()
    scene = selection.scene
    plain = colmap_model(scene, selection, pool)
    tracked = _tracked_model(plain.model, scene)
    model = _in_several_images(plain.model) if tracked is None else tracked
    summary: dict[str, Any] = {"observations": "reprojections" if tracked is None else "tracks"}
    if len(scene) < 2 or len(model.points) < _LEAST_POINTS:
        return Refined(scene, {**summary, "kept": False, "reason": "too few images or points in several of them"})
    summary["before"] = _mean_error(model)
    adjusted = _adjust(pycolmap, model, scene)
    summary["after"] = _mean_error(adjusted)
    candidate = _with_cameras(scene, adjusted, model)
    again = colmap_model(candidate, replace(selection, scene=candidate), pool)
    summary["model_before"] = plain.summary["mean_reprojection_error"]
    summary["model_after"] = again.summary["mean_reprojection_error"]
    reason = _worse(summary, plain.summary["points_in_several_images"], again.summary["points_in_several_images"])
    if reason is not None:
        return Refined(scene, {**summary, "kept": False, "reason": reason})
    return Refined(candidate, {**summary, "kept": True})


def _in_several_images(model: ColmapModel) -> ColmapModel:
    """Without points that one image alone sees: bundle adjustment refuses them."""
    several = np.bincount(model.seen_point, minlength=len(model.points)) > 1
    kept, numbers = several[model.seen_point], np.cumsum(several) - 1
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
    if before is not None and (after is None or after > before):
        return "the error of the exported points rose"
    if joined_after < (1 - _LOST) * joined_before:
        return "fewer points are seen by several images"
    return None


def _adjust(pycolmap: Any, model: ColmapModel, scene: Scene) -> ColmapModel:
    """The same observations with cameras and points after bundle adjustment."""
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), model)
        reconstruction = pycolmap.Reconstruction(folder)
    options = pycolmap.BundleAdjustmentOptions()
    options.print_summary = False
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
    parameters = np.array([reconstruction.camera(number).params for number in range(1, len(model.sizes) + 1)])
    adjusted = replace(model, poses=np.array(poses), points=points, parameters=parameters)
    return _scaled(adjusted, model)


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


def _with_cameras(scene: Scene, adjusted: ColmapModel, before: ColmapModel) -> Scene:
    """The scene with new poses and focal lengths; the latter change by the same part at either resolution."""
    assert scene.intrinsic is not None
    rotations, translations = _cameras(adjusted.poses)
    extrinsic = torch.from_numpy(np.concatenate([rotations, translations[..., None]], axis=-1)).float()
    intrinsic = scene.intrinsic.clone()
    change = torch.from_numpy(adjusted.parameters[:, :2] / before.parameters[:, :2])
    intrinsic[:, 0, 0] *= change[:, 0]
    intrinsic[:, 1, 1] *= change[:, 1]
    assert scene.extrinsic is not None
    extrinsic[0] = scene.extrinsic[0]
    return replace(scene, extrinsic=extrinsic, intrinsic=intrinsic)


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
    colors = np.zeros((places.shape[1], 3), np.uint8)
    original = np.empty_like(places)
    for index in range(len(scene)):
        offset, scale = np.array(scene.transforms[index].offset), np.array(scene.transforms[index].scale)
        original[index] = (places[index] + 0.5 - offset) / scale
        at = (rows[index].clip(0, height - 1), columns[index].clip(0, width - 1))
        seen[index] &= scene.content(index).numpy()[at]
        intrinsic = corner_intrinsic(scene, index).numpy()
        depth = scene.depth[index].numpy()[at].astype(np.float64)
        rays = np.ones((len(depth), 3))
        rays[:, :2] = (original[index] - intrinsic[:2, 2]) / intrinsic.diagonal()[:2]
        here = seen[index]
        total[here] += ((rays * depth[:, None] - translations[index]) @ rotations[index])[here]
        count[here] += 1
        if index == 0:
            colors = scene.colors[0].numpy()[at]
    kept = np.flatnonzero(seen.sum(axis=0) >= _LEAST_VIEWS)
    if len(kept) < _LEAST_POINTS:
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
