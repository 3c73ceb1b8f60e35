"""One saved reconstruction in the viewer: name, scene, sampled points and camera views."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vggt_int8.export import Scene, load_scene
from vggt_int8.export.selection import PointSource
from vggt_int8.geometry import camera_center
from vggt_int8.viewer.cloud import Cloud, known_source, sample_cloud

THUMBNAIL = 160  # pixels of the longer side
HIDES = 1 / 3  # of the view's height: an image that is drawn as high hides too much of it


@dataclass(frozen=True)
class View:
    """Camera of one image in world coordinates, with OpenCV axes."""

    index: int
    rotation: NDArray[np.float64]  # [3, 3] world from camera: its columns are right, down and forward
    center: NDArray[np.float64]  # [3]
    field_of_view: float  # vertical, radians, in (0, pi)
    aspect: float  # width / height
    thumbnail: NDArray[np.uint8]  # [h, w, 3]

    def placed(self, scale: float, place: NDArray[np.float64]) -> "View":
        """The same camera on the stage, where its reconstruction is scaled and moved."""
        return replace(self, center=self.center * scale + place)

    def hidden_by(self, other: "View", scale: float) -> bool:
        """Whether the image that is drawn in front of another camera (or this one) hides much of what this one sees.

        scale: viser's, of a camera: all pyramids of one scale have one volume.
        """
        half = math.tan(other.field_of_view / 2)
        depth = scale / math.cbrt(half * half * other.aspect / 3)
        x, y, z = self.rotation.T @ (other.center + depth * other.rotation[:, 2] - self.center)
        half, seen = half * depth, math.tan(self.field_of_view / 2) * z  # half the heights of the image and the view
        overlap = abs(x) < half * other.aspect + seen * self.aspect and abs(y) < half + seen
        return bool(z > 0 and half > HIDES * seen and overlap)


@dataclass(frozen=True)
class Reconstruction:
    """The contents of one folder."""

    label: str
    folder: Path
    scene: Scene
    source: PointSource
    cloud: Cloud

    def views(self) -> list[View]:
        """All cameras that can be drawn: finite, and with a field of view above zero."""
        found = (self._view(index) for index in range(len(self.scene)))
        return [view for view in found if view is not None]

    def _view(self, index: int) -> View | None:
        scene = self.scene
        if scene.extrinsic is None or scene.intrinsic is None:
            return None
        extrinsic, intrinsic = scene.extrinsic[index].double(), scene.intrinsic[index].double()
        height, width = scene.size
        focal = float(intrinsic[1, 1])
        if not (bool(extrinsic.isfinite().all()) and math.isfinite(focal) and focal > 0):
            return None
        picture = Image.fromarray(scene.colors[index].numpy())
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        return View(
            index=index,
            rotation=extrinsic[:, :3].T.numpy(),
            center=camera_center(extrinsic).numpy(),
            field_of_view=2 * math.atan(height / (2 * focal)),
            aspect=width / height,
            thumbnail=np.asarray(picture),
        )

    def grain(self) -> float:
        """Typical distance between neighbouring points: points of that size form closed surfaces."""
        scene, (_, extent) = self.scene, self.extent
        if scene.depth is None or scene.intrinsic is None:
            return extent / math.sqrt(max(len(self.cloud.points), 1))
        middle = len(scene) // 2  # one map is enough to know how far things are
        depth, focal = float(scene.depth[middle].median()), float(scene.intrinsic[middle, 1, 1])
        share = max(len(self.cloud.points), 1) / max(self.cloud.pixels, 1)
        grain = depth / focal / math.sqrt(share) if focal > 0 else 0.0
        return grain if 0 < grain < extent else extent / math.sqrt(max(len(self.cloud.points), 1))

    @cached_property
    def extent(self) -> tuple[NDArray[np.float64], float]:
        """Centre of the points that can be shown, and a radius that contains most of them; (0, 1) without points."""
        points = self.cloud.points[self.cloud.usable]
        if not len(points):
            return np.zeros(3), 1.0
        middle = np.median(points, axis=0)
        return middle.astype(np.float64), max(float(np.percentile(np.linalg.norm(points - middle, axis=1), 90)), 1e-6)


def spacing(views: Sequence[View]) -> float:
    """Median distance from each camera to its nearest neighbour; 0 for fewer than two cameras."""
    if len(views) < 2:
        return 0.0
    centers = np.stack([view.center for view in views])
    nearest = [np.partition(np.linalg.norm(centers - center, axis=1), 1)[1] for center in centers]
    return float(np.median(nearest))


def load_reconstructions(folders: Sequence[Path], *, points: PointSource | None, most: int) -> list[Reconstruction]:
    """Load scenes saved by `vggt-int8 run` in these folders, each with at most `most` sampled pixels.

    points: see `sample_cloud`. Raises the errors of `load_scene`, and ValueError, naming the folder, for a scene
        without points.
    """
    found = []
    for folder, label in zip(folders, _labels(folders), strict=True):
        scene = load_scene(folder)
        try:
            source = known_source(scene, points)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error
        found.append(Reconstruction(label, folder, scene, source, sample_cloud(scene, source, most)))
    return found


def _labels(folders: Sequence[Path]) -> list[str]:
    """Folder name and recipe from the report, numbered if two labels are the same."""
    labels: list[str] = []
    for folder in folders:
        recipe = _recipe(folder)
        name = folder.expanduser().resolve().name
        label = name if recipe is None or recipe == name else f"{name} ({recipe})"
        number = 1 + sum(other == label or other.startswith(f"{label} #") for other in labels)
        labels.append(label if number == 1 else f"{label} #{number}")
    return labels


def _recipe(folder: Path) -> str | None:
    """The recipe in the report; None without a usable report, which is optional."""
    try:
        recipe = json.loads((folder.expanduser() / "report.json").read_text(encoding="utf-8"))["recipe"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return recipe if isinstance(recipe, str) else None
