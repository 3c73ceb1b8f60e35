"""The cost of a training step: rendering, forward and backward, update, memory; and the loss of a short run."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vggt_int8.files import sweep
from vggt_int8.listing import first_few
from vggt_int8.scenes import SceneDescription, describe_scenes, scene_seeds
from vggt_int8.training.captured import EAGER_STEPS
from vggt_int8.training.checkpoint import owned_files
from vggt_int8.training.config import TrainingConfig
from vggt_int8.training.log import LOG, check_run_folder
from vggt_int8.training.loop import RunLimits
from vggt_int8.training.sections import FrameShape
from vggt_int8.training.trainer import Trainer

REPEATS = 10
# Fields of a row: title, and how a value is written.
COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "size": ("   size", lambda size: f"{size[0]:>3}x{size[1]:<3}"),
    "views": ("views", str),
    "first_render_s": ("first render s", "{:.1f}".format),
    "first_step_s": ("first step s", "{:.1f}".format),
    "draw_ms": ("draw ms", "{:.1f}".format),
    "render_ms": ("render ms", "{:.1f}".format),
    "forward_backward_ms": ("forward+backward ms", "{:.1f}".format),
    "update_ms": ("update ms", "{:.1f}".format),
    "frames_per_second": ("frames/s", "{:.0f}".format),
}
HEADER = "  ".join(title for title, _ in COLUMNS.values())
Row = dict[str, Any]


def measure(
    config: TrainingConfig,
    out: Path,
    max_minutes: float,
    say: Callable[[str], None] = print,
    *,
    quiet: bool = False,
) -> dict[str, Any]:
    """What a step costs, in a row per shape and number of views; then train from scratch in `out`/measure (removed
    first) until `max_minutes` after the call.

    say: called with lines for people, as soon as they are known. quiet: no progress of the training. Returns
    "parameters", "compiled", "rows" (the keys of `COLUMNS`), "peak_gib" (GPU memory, None on a CPU), "step", "reason"
    and the path of the "log".
    """
    check_run_folder(out / "measure")
    folder = out / "measure"
    _remove_earlier(folder)
    trainer = Trainer(config, folder, quiet=quiet)
    parameters = sum(p.numel() for p in trainer.network.parameters())
    fp16_mb = 2 * parameters / 1e6
    say(f"{parameters / 1e6:.2f} M parameters ({fp16_mb:.1f} MB in fp16), compiled: {config.compile or 'nothing'}")
    say(HEADER)
    rows = []
    for shape in config.data.shapes or (FrameShape(config.data.size),):
        for views in config.data.views:
            rows.append(_row(trainer, config, shape.size, views))
            say(line(rows[-1]))
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    if peak is not None:
        say(f"peak GPU memory {peak:.2f} GiB")
    reason = trainer.train(RunLimits(max_minutes=max_minutes))
    say(f"stopped at step {trainer.step}: {reason}; log in {folder / LOG}")
    found = {"parameters": parameters, "compiled": config.compile, "rows": rows, "peak_gib": peak}
    return {**found, "step": trainer.step, "reason": reason, "log": folder / LOG}


def line(row: Row) -> str:
    """A row under `HEADER`."""
    return "  ".join(write(row[name]).rjust(len(title)) for name, (title, write) in COLUMNS.items())


def _remove_earlier(folder: Path) -> None:
    """Raises FileExistsError if there is anything but what `measure` writes."""
    if not folder.exists():
        return
    check_run_folder(folder)
    checkpoint = folder / "checkpoint"
    sweep(checkpoint)  # of a measurement that was killed
    ours = set(owned_files(checkpoint)) if checkpoint.exists() else set()
    found = {path.name for path in folder.iterdir()} - {"checkpoint", LOG}
    found |= {path.name for path in checkpoint.iterdir()} - ours if checkpoint.exists() else set()
    if found:
        raise FileExistsError(f"{folder} holds {first_few(sorted(found))}, which is no measurement's: move it away")
    shutil.rmtree(folder)


def _row(trainer: Trainer, config: TrainingConfig, size: tuple[int, int], views: int) -> Row:
    data = config.data
    seeds = scene_seeds("free", range(data.frames_per_step // views))
    first_render = _seconds(lambda: trainer.prepare(describe_scenes(seeds, views, size)))
    first_step = _seconds(lambda: trainer.train_step(describe_scenes(seeds, views, size)))
    draw = _milliseconds(lambda: describe_scenes(seeds, views, size))
    description: SceneDescription = describe_scenes(seeds, views, size)
    render = _milliseconds(lambda: trainer.prepare(description))
    batch = trainer.prepare(description)

    def forward_backward() -> None:
        trainer.forward_backward(batch)
        trainer.network.zero_grad(set_to_none=True)

    trainer.model.train()
    both = _milliseconds(forward_backward)
    whole = _milliseconds(lambda: trainer.train_step(description))
    return {
        "size": size,
        "views": views,
        "first_render_s": first_render,
        "first_step_s": first_step,
        "draw_ms": draw,
        "render_ms": render,
        "forward_backward_ms": both,
        "update_ms": whole - both - render,
        "frames_per_second": data.frames_per_step / whole * 1e3,
    }


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
