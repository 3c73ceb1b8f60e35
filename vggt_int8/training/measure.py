"""What a training step costs: rendering, forward and backward, update, memory; then a short run's loss."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch

from vggt_int8.listing import first_few
from vggt_int8.scenes import SceneDescription, describe_scenes, scene_seeds
from vggt_int8.training.captured import EAGER_STEPS
from vggt_int8.training.checkpoint import owned_files
from vggt_int8.training.config import FrameShape, TrainingConfig
from vggt_int8.training.loop import RunLimits, Trainer, check_run_folder

REPEATS = 10
HEADER = "   size  views  first render s  first step s  draw ms  render ms  forward+backward ms  update ms  frames/s"


def measure(config: TrainingConfig, out: Path, max_minutes: float) -> None:
    """Print a row per shape and number of views, then train from scratch in `out`/measure (removed first)
    until `max_minutes` after the call."""
    folder = out / "measure"
    _remove_earlier(folder)
    trainer = Trainer(config, folder)
    parameters = sum(p.numel() for p in trainer.network.parameters())
    fp16_mb = 2 * parameters / 1e6
    print(f"{parameters / 1e6:.2f} M parameters ({fp16_mb:.1f} MB in fp16), compiled: {config.compile or 'nothing'}")
    print(HEADER)
    for shape in config.data.shapes or (FrameShape(config.data.size),):
        for views in config.data.views:
            print(_row(trainer, config, shape.size, views), flush=True)
    if torch.cuda.is_available():
        print(f"peak GPU memory {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
    reason = trainer.train(RunLimits(max_minutes=max_minutes))
    print(f"stopped at step {trainer.step}: {reason}; log in {folder / 'log.jsonl'}")


def _remove_earlier(folder: Path) -> None:
    """Raises FileExistsError if there is anything but what `measure` writes."""
    if not folder.exists():
        return
    check_run_folder(folder)
    checkpoint = folder / "checkpoint"
    ours = set(owned_files(checkpoint)) if checkpoint.exists() else set()
    found = {path.name for path in folder.iterdir()} - {"checkpoint", "log.jsonl"}
    found |= {path.name for path in checkpoint.iterdir()} - ours if checkpoint.exists() else set()
    if found:
        raise FileExistsError(f"{folder} holds {first_few(sorted(found))}, which is no measurement's: move it away")
    shutil.rmtree(folder)


def _row(trainer: Trainer, config: TrainingConfig, size: tuple[int, int], views: int) -> str:
    data = config.data
    seeds = scene_seeds("free", range(data.frames_per_step // views))
    first_render = _seconds(lambda: trainer.render(describe_scenes(seeds, views, size)))
    first_step = _seconds(lambda: trainer.train_step(describe_scenes(seeds, views, size)))
    draw = _milliseconds(lambda: describe_scenes(seeds, views, size))
    description: SceneDescription = describe_scenes(seeds, views, size)
    render = _milliseconds(lambda: trainer.render(description))
    batch = trainer.render(description)

    def forward_backward() -> None:
        trainer.forward_backward(batch)
        trainer.network.zero_grad(set_to_none=True)

    trainer.model.train()
    both = _milliseconds(forward_backward)
    whole = _milliseconds(lambda: trainer.train_step(description))
    frames = data.frames_per_step / whole * 1e3
    update = whole - both - render
    cells = (
        f"{size[0]:>3}x{size[1]:<3}",
        f"{views:>5}",
        f"{first_render:>14.1f}",
        f"{first_step:>12.1f}",
        f"{draw:>7.1f}",
        f"{render:>9.1f}",
        f"{both:>19.1f}",
    )
    return "  ".join((*cells, f"{update:>9.1f}", f"{frames:>8.0f}"))


def _seconds(work: Callable[[], object]) -> float:
    """One call, compilation included."""
    start = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - start


def _milliseconds(work: Callable[[], object]) -> float:
    """Mean over some calls, after those that do not count: compiling, and recording a CUDA graph."""
    for _ in range(EAGER_STEPS + 1):
        work()
    _wait()
    start = time.perf_counter()
    for _ in range(REPEATS):
        work()
    _wait()
    return (time.perf_counter() - start) / REPEATS * 1e3


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
