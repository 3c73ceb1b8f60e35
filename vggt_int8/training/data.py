"""Endless training scenes that depend on the step only: resuming needs just the step number."""

import random
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from vggt_int8.scenes import SceneDescription, describe_scenes, scene_seeds
from vggt_int8.training.sections import DataConfig, FrameShape


class StepScenes(Dataset[SceneDescription]):
    """Item i: the scenes of step `first_step + i` for one of several processes, described on the CPU."""

    def __init__(self, config: DataConfig, seed: int, first_step: int, last_step: int, rank: int, world: int) -> None:
        self.config, self.seed, self.first_step = config, seed, first_step
        self.steps = max(0, last_step - first_step)
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, item: int) -> SceneDescription:
        step = self.first_step + item
        # The same number of views and pixels in all processes keeps their steps equally long.
        draw = random.Random(f"{self.seed}/{step}")
        views = draw.choice(self.config.views)
        shape = FrameShape(self.config.size)
        if self.config.shapes:
            (shape,) = draw.choices(self.config.shapes, [shape.weight for shape in self.config.shapes])
        block = self.config.frames_per_step  # room for the scenes of one process in one step
        first = (step * self.world + self.rank) * block + self.seed * (1 << 40)
        seeds = scene_seeds("train", range(first, first + self.config.frames_per_step // views))
        return describe_scenes(seeds, views, shape.size, shape.pixel_aspect)


def training_descriptions(
    config: DataConfig, seed: int, first_step: int, last_step: int, rank: int, world: int
) -> Iterator[SceneDescription]:
    """Descriptions of steps first_step ... last_step - 1 in order, drawn ahead by worker processes."""
    scenes = StepScenes(config, seed, first_step, last_step, rank, world)
    loader = DataLoader(
        scenes,
        batch_size=None,
        num_workers=config.workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if config.workers else None,
        worker_init_fn=_one_thread,
    )
    return iter(loader)


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
