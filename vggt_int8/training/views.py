"""The images for distillation: views of scenes whose geometry need not be known.

Two sources: scenes that are rendered on demand, and folders of images. Both give the same views for a step whenever and
wherever it runs, so resuming only needs the step number.
"""

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vggt_int8.images import check_images, find_images, read_images
from vggt_int8.model.network_config import NetworkConfig
from vggt_int8.scenes import SceneBatch, SceneDescription, render_description, render_scenes, scene_batches, scene_seeds
from vggt_int8.training.data import training_descriptions
from vggt_int8.training.sections import DataConfig, RunConfig

SYNTHETIC = "synthetic"
CALIBRATION_VIEWS = 8  # of each rendered scene
VALIDATION_SPLIT = "free"  # the scores that are published are of "held_out"


@dataclass
class Views:
    """B scenes of S views each, with their geometry if it is known."""

    images: Tensor  # [B, S, 3, H, W] in [0, 1]


class Source(ABC):
    """Where views come from."""

    @abstractmethod
    def items(self, config: RunConfig, first: int, last: int, rank: int, world: int) -> Iterator[Any]:
        """The data of steps first ... last - 1 of process `rank` of `world`."""

    @abstractmethod
    def prepare(self, item: Any, config: RunConfig, device: torch.device) -> Views:
        """The views of an item, on the device."""

    @abstractmethod
    def held_out(self, config: RunConfig, views: int, device: torch.device) -> Iterator[Views | SceneBatch]:
        """`config.validation.scenes` scenes with this many views, always the same, in batches."""

    @abstractmethod
    def calibration(self, config: RunConfig, images: int) -> list[Tensor]:
        """About this many images, [S, 3, H, W] in [0, 1] of each scene, on the CPU, to calibrate static scales."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Its description for the checkpoint: plain data."""

    def remarks(self, config: RunConfig) -> list[str]:
        """Deviations from the configuration, as text."""
        return []


class Rendered(Source):
    """Procedural scenes (`vggt_int8.scenes`), of the split "train"; validated on "free"."""

    def items(self, config: RunConfig, first: int, last: int, rank: int, world: int) -> Iterator[SceneDescription]:
        return training_descriptions(config.data, config.seed, first, last, rank, world)

    def prepare(self, item: SceneDescription, config: RunConfig, device: torch.device) -> Views:
        compiled = "render" in config.compile
        return Views(render_description(item.to(device), supersample=config.data.supersample, compiled=compiled).images)

    def held_out(self, config: RunConfig, views: int, device: torch.device) -> Iterator[SceneBatch]:
        data, frames = config.data, config.validation.frames_per_batch
        return scene_batches(
            VALIDATION_SPLIT,
            config.validation.scenes,
            views,
            data.size,
            frames_per_batch=frames,
            device=device,
            supersample=data.supersample,
        )

    def calibration(self, config: RunConfig, images: int) -> list[Tensor]:
        data = config.data
        views = min(images, CALIBRATION_VIEWS)
        seeds = scene_seeds("calibration", range(-(-images // views)))
        return list(render_scenes(seeds, views, data.size, supersample=data.supersample).images)

    def facts(self) -> dict[str, Any]:
        return {"kind": "rendered scenes", "split": "train"}


class Album(Source):
    """Folders of images, each with the views of one scene, as uint8 in memory: 0.6 MB per image of 392 x 518 pixels.

    A step takes scenes of one size, and of each the required number of views, in any order. Nothing is held out:
    validation uses other draws of the same images, unless `held` provides images of its own.
    """

    def __init__(self, scenes: Sequence[Tensor], held: "Album | None" = None) -> None:
        """scenes: [S, 3, H, W] uint8 each, one of them with two views at least."""
        self.held = held
        self.by_size: dict[tuple[int, int], list[Tensor]] = {}
        self.count, self.frames = len(scenes), sum(map(len, scenes))
        for scene in scenes:
            if len(scene) > 1:
                self.by_size.setdefault((scene.shape[-2], scene.shape[-1]), []).append(scene)
        digest = hashlib.sha256()
        for scene in scenes:
            digest.update(str(tuple(scene.shape)).encode() + scene.contiguous().numpy().tobytes())
        self.sha256 = digest.hexdigest()

    @classmethod
    def read(
        cls,
        scenes: Sequence[Sequence[Path]],
        model: NetworkConfig,
        on_image: Callable[[int, int], None] | None = None,
    ) -> "Album":
        """The images of `find_scenes`, at the model's size. on_image: called with (images done, all images). Raises as
        `read_images`."""
        done, total = 0, sum(map(len, scenes))
        found = []
        for paths in scenes:
            images, _ = read_images(paths, model=model)
            found.append((images * 255).round().to(torch.uint8))
            done += len(paths)
            if on_image is not None:
                on_image(done, total)
        return cls(found)

    def views_possible(self, views: Sequence[int]) -> list[int]:
        """Those of `views` that some scene has enough images for; the most that there are if there are none."""
        most = max(len(scene) for scenes in self.by_size.values() for scene in scenes)
        return [count for count in views if count <= most] or [most]

    def remarks(self, config: RunConfig) -> list[str]:
        steps, validation = config.data.views, config.validation.views
        held = self.held or self
        found = {
            "steps": (steps, self.views_possible(steps)),
            "validation": (validation, [held.views_possible([views])[0] for views in validation]),
        }
        return [
            f"no scene has {max(asked)} images: {what} with {', '.join(map(str, possible))} views"
            for what, (asked, possible) in found.items()
            if set(possible) != set(asked)
        ]

    def draw(self, seed: str, views: Sequence[int], frames: int) -> Tensor:
        """frames // v scenes of v views each, v one of `views`: [B, v, 3, H, W] uint8, a function of the arguments."""
        random_ = random.Random(seed)
        count = random_.choice(self.views_possible(views))
        enough = {
            size: [scene for scene in scenes if len(scene) >= count] for size, scenes in sorted(self.by_size.items())
        }
        sizes = [size for size, scenes in enough.items() if scenes]
        (size,) = random_.choices(sizes, [len(enough[size]) for size in sizes])
        scenes = [random_.choice(enough[size]) for _ in range(max(1, frames // count))]
        return torch.stack([scene[random_.sample(range(len(scene)), count)] for scene in scenes])

    def items(self, config: RunConfig, first: int, last: int, rank: int, world: int) -> Iterator[Tensor]:
        data: DataConfig = config.data
        for step in range(first, last):
            # The same number of views and pixels in all processes keeps their steps equally long.
            drawn = self.draw(f"{config.seed}/{step}", data.views, data.frames_per_step * world)
            yield drawn[rank::world]

    def prepare(self, item: Tensor, config: RunConfig, device: torch.device) -> Views:
        return Views(item.to(device).float() / 255)

    def held_out(self, config: RunConfig, views: int, device: torch.device) -> Iterator[Views]:
        album, validation = self.held or self, config.validation
        at_once = max(1, validation.frames_per_batch // views)
        for first in range(0, validation.scenes, at_once):
            count = min(at_once, validation.scenes - first)
            yield self.prepare(album.draw(f"held out/{first}", [views], count * views), config, device)

    def calibration(self, config: RunConfig, images: int) -> list[Tensor]:
        return [scene.float() / 255 for scenes in self.by_size.values() for scene in scenes]

    def facts(self) -> dict[str, Any]:
        return {"kind": "images", "scenes": self.count, "images": self.frames, "sha256": self.sha256}


def find_scenes(folders: Sequence[str | Path]) -> list[list[Path]]:
    """The images of each scene: of each folder, or of each of its subfolders if it holds no files itself.

    Raises as `find_images` and `check_images`, and ValueError if no scene has two images.
    """
    found = [find_images(folder) for path in folders for folder in scene_folders(Path(path).expanduser())]
    check_images([path for paths in found for path in paths])
    if not any(len(paths) > 1 for paths in found):
        counts = ", ".join(str(len(paths)) for paths in found[:5])
        raise ValueError(f"a scene needs two views or more, and the folders have {counts}: put views together")
    return found


def scene_folders(folder: Path) -> list[Path]:
    """The folder itself, or its subfolders, in order, if it has some and no images beside them.

    Raises FileNotFoundError if it is not there, ValueError if it is no folder.
    """
    if not folder.exists():
        raise FileNotFoundError(f"no such folder of images: {folder}")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file: a scene is a folder of images")
    inside = sorted(folder.iterdir())
    below = [path for path in inside if path.is_dir() and not path.name.startswith(".")]
    return below if below and not any(path.is_file() for path in inside) else [folder]
