"""Apply every change alone to every scene, and compare with the floating-point model on the same images.

The outer loop runs over scenes and the inner loop over changes, so only one scene's reference outputs are kept.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vggt_int8.sensitivity.measures import Errors, measure
from vggt_int8.sensitivity.record import Record
from vggt_int8.sensitivity.scenes import Scene

QUERY_POINTS = 64  # that the track head follows


class Change(Protocol):
    """A temporary change to a model. The pair of `unit` and `choice` is its unique name."""

    @property
    def unit(self) -> str: ...

    @property
    def choice(self) -> str: ...

    def made(self, model: nn.Module) -> AbstractContextManager[None]:
        """Context manager: the model is changed within the block."""
        ...


@torch.inference_mode()
def measure_changes(
    model: nn.Module,
    scenes: Sequence[Scene],
    changes: Sequence[Change],
    record: Record,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Measure everything that `record` does not contain yet, and add each change of each scene to it.

    seed: for the points that the track head follows. Raises FloatingPointError for outputs with NaN.
    """
    done, total = 0, len(scenes) * len(changes)
    for index, scene in enumerate(scenes):
        missing = [change for change in changes if not record.has(index, change.unit, change.choice)]
        done += len(changes) - len(missing)
        reference = outputs_of(model, scene, seed) if missing else {}
        for change in missing:
            with change.made(model):
                outputs = outputs_of(model, scene, seed)
            record.write(index, change.unit, change.choice, measure(outputs, reference, scene.size))
            done += 1
            if progress is not None:
                progress(done, total)


@torch.inference_mode()
def compare_on(model: nn.Module, other: nn.Module, scenes: Iterable[Scene], seed: int) -> list[Errors]:
    """Errors of `other` relative to `model` for each scene."""
    return [measure(outputs_of(other, scene, seed), outputs_of(model, scene, seed), scene.size) for scene in scenes]


def outputs_of(model: Any, scene: Scene, seed: int) -> Mapping[str, Tensor]:
    """The model's outputs for a scene. If it has a track head, they include tracks of points drawn in the first
    image.
    """
    device = next(model.parameters()).device
    points = {}
    if "track" in model.present_heads:
        drawn = torch.rand(QUERY_POINTS, 2, generator=torch.Generator().manual_seed(seed))
        points["query_points"] = (drawn * torch.tensor([scene.size[1] - 1, scene.size[0] - 1])).to(device)
    with _without_tf32():
        outputs: Mapping[str, Tensor] = model(scene.images.to(device), **points)
    return outputs


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Disable TF32 within the block: otherwise "fp32" convolutions would run in TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
