"""Scenes to score models on: rendered ones, stored folders, and whatever else can be iterated as `DataSet`."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import load_file, save
from torch import Tensor

from vggt_int8.files import write_whole
from vggt_int8.geometry import camera_center, unproject_depth
from vggt_int8.scenes import load_scene, render_scenes, scene_seeds
from vggt_int8.scenes.render import GENERATOR_VERSION

_KEPT_BYTES = 1 << 30
_KNOWN = ("images", "extrinsic", "intrinsic", "depth", "valid")  # of a rendered scene, as of `TrueScene`


@dataclass(frozen=True)
class TrueScene:
    """One scene of S views of H x W pixels, on the CPU; unknown parts are None. Conventions: `vggt_int8.geometry`.

    images: [S, 3, H, W] in [0, 1].
    extrinsic, intrinsic: [S, 3, 4] camera from world; [S, 3, 3] in pixels.
    depth, valid: [S, H, W] along the camera's z axis; [S, H, W] bool, where it is known.
    scan: [N, 3], points of surfaces that the views see, measured by other means, in the world's frame and in meters.
    """

    name: str
    images: Tensor
    extrinsic: Tensor | None = None
    intrinsic: Tensor | None = None
    depth: Tensor | None = None
    valid: Tensor | None = None
    scan: Tensor | None = None

    def points(self) -> Tensor | None:
        """[S, H, W, 3] in the world's frame, None where depth or cameras are not known."""
        if self.depth is None or self.extrinsic is None or self.intrinsic is None:
            return None
        return unproject_depth(self.depth, self.extrinsic, self.intrinsic)

    def scale(self) -> float | None:
        """The scene's scale: mean distance of its valid points from the first camera; of the other cameras where no
        depth is known, None where these do not move, or are not known. In the unit of the truth."""
        return self._scale

    @cached_property
    def _scale(self) -> float | None:  # every metric of every model asks for it
        points = self.points()
        if points is not None and self.extrinsic is not None and self.valid is not None and self.valid.any():
            return (points[self.valid] - camera_center(self.extrinsic[0])).norm(dim=-1).mean().item()
        if self.extrinsic is None or len(self.extrinsic) < 2:
            return None
        centers = camera_center(self.extrinsic)
        return (centers[1:] - centers[0]).norm(dim=-1).mean().item() or None


class DataSet(Protocol):
    """The input of `eval`: a fixed number of scenes in a fixed order."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[TrueScene]: ...

    def identity(self) -> dict[str, Any]:
        """JSON-ready; changes whenever an image or a true value does, so that old predictions are told apart."""
        ...


class RenderedScenes:
    """Scenes 0 ... scenes - 1 of a split of the procedural ones, `views` views of `size` (H, W) each.

    Rendered on `device`, since at the size of VGGT-1B a CPU takes minutes for a scene; given on the CPU as all others.
    They are read once a model, so up to `_KEPT_BYTES` of them stay in memory; others are rendered again, or read from
    `folder`, where each is kept by its name from one run to the next. pixel_aspect: see `describe_scenes`.
    """

    def __init__(
        self,
        scenes: int,
        views: int,
        size: tuple[int, int],
        split: str = "held_out",
        device: str = "cpu",
        *,
        pixel_aspect: tuple[float, float] = (1.0, 1.0),
        folder: Path | None = None,
    ) -> None:
        self.scenes, self.views, self.size, self.split, self.device = scenes, views, size, split, device
        self.pixel_aspect, self.folder = pixel_aspect, folder
        self._kept: list[TrueScene] = []

    def __len__(self) -> int:
        return self.scenes

    def __iter__(self) -> Iterator[TrueScene]:
        return map(self.scene, range(self.scenes))

    def scene(self, index: int) -> TrueScene:
        if index < len(self._kept):
            return self._kept[index]
        tensors = self._from_disk(index)
        scene = TrueScene(f"{self.split} {index}", *(tensors[name] for name in _KNOWN))
        bytes_of_one = sum(tensor.nbytes for tensor in tensors.values())
        if index == len(self._kept) and (index + 1) * bytes_of_one <= _KEPT_BYTES:
            self._kept.append(scene)
        return scene

    def _from_disk(self, index: int) -> dict[str, Tensor]:
        """A name tells all that decides a scene, so what is there fits."""
        if self.folder is None:
            return self._render(index)
        what = [self.split, self.views, *self.size, *self.pixel_aspect, self.device.partition(":")[0]]
        path = self.folder / f"{'_'.join(map(str, what))}_v{GENERATOR_VERSION}_{index:05d}.safetensors"
        if not path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, save(self._render(index)))
        return load_file(path)

    def _render(self, index: int) -> dict[str, Tensor]:
        # By itself: in a batch of another size it would have other bits.
        seeds = scene_seeds(self.split, [index])
        batch = render_scenes(seeds, self.views, self.size, device=self.device, pixel_aspect=self.pixel_aspect)
        return {name: getattr(batch, name)[0].cpu().contiguous() for name in _KNOWN}

    def identity(self) -> dict[str, Any]:
        """Without their number: scene i is the same among few and among many, so more can be added."""
        return {
            "kind": "rendered",
            "generator_version": GENERATOR_VERSION,
            "split": self.split,
            "views": self.views,
            "size": list(self.size),
            **({} if self.pixel_aspect == (1.0, 1.0) else {"pixel_aspect": list(self.pixel_aspect)}),
        }


class StoredScenes:
    """A folder that `vggt-int8 scenes render` wrote, or one of such folders, in natural order."""

    def __init__(self, folder: Path, most: int | None = None) -> None:
        """most: use no more than the first so many. Raises FileNotFoundError, naming the folder, if it has none, and
        what `load_scene` raises for one that is damaged."""
        folder = folder.expanduser()
        found = (
            [folder]
            if (folder / "scene.json").is_file()
            else sorted((path.parent for path in folder.glob("*/scene.json")), key=lambda path: _natural(path.name))
        )
        if not found:
            raise FileNotFoundError(
                f"{folder} holds no stored scene: pass a folder that `vggt-int8 scenes render --to` wrote, or one of "
                "such folders"
            )
        self.folders = found[:most]
        # (H, W) of each scene's images, by its folder. What is damaged is said now.
        self.sizes: dict[str, tuple[int, int]] = {}
        for path in self.folders:
            height, width = load_scene(path).images.shape[-2:]
            self.sizes[str(path)] = (height, width)

    def __len__(self) -> int:
        return len(self.folders)

    def __iter__(self) -> Iterator[TrueScene]:
        for folder in self.folders:
            scene = load_scene(folder)
            yield TrueScene(folder.name, scene.images, scene.extrinsic, scene.intrinsic, scene.depth, scene.valid)

    def identity(self) -> dict[str, Any]:
        return {"kind": "stored", "scenes": {folder.name: _digest(folder) for folder in self.folders}}


def _digest(folder: Path) -> str:
    """sha256 over names and contents of a stored scene's files."""
    total = hashlib.sha256()
    for path in sorted([folder / "scene.json", *folder.glob("*.png")]):
        total.update(f"{path.name} {path.stat().st_size}\n".encode("utf-8", "surrogateescape"))
        total.update(path.read_bytes())
    return total.hexdigest()


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def first_scenes(data: DataSet, count: int) -> list[TrueScene]:
    """The first `count` scenes, or all if there are fewer."""
    return [scene for scene, _ in zip(data, range(count), strict=False)]
