"""Loop detection: candidates by the appearance of frames, verified by what both visits see.

Descriptors are means of the image encoder's patch tokens, which the network computes anyway. The mean over all frames
is subtracted first, so that their cosine similarity measures how alike two places are. The frame of a new window that
is most similar to one of a much earlier window is a candidate. The network then reconstructs frames of both visits
together, and the loop counts if enough pixels of each visit are at the depth at which the other one sees them. A
reconstruction that merely invents the relative pose fails this check.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from vggt_int8.geometry import project_points, unproject_depth
from vggt_int8.stream.align import Views
from vggt_int8.stream.state import Window

LEAST_LIKENESS = 0.5  # of a candidate
LEAST_SEEN = 0.3  # of a loop
DEPTH_TOLERANCE = 0.05
VISIT = 8  # frames of each visit that are reconstructed together, at most
_STRIDE = 4  # of pixels that are looked at


class Candidate(NamedTuple):
    """Frames by their index inside their windows."""

    windows: tuple[int, int]
    frames: tuple[int, int]
    likeness: float


def find_candidate(windows: list[Window], apart: int) -> Candidate | None:
    """The frame of the last window that is most similar to one of an earlier window, if any is similar enough.

    apart: number of frames that must lie between the two; windows with common frames are no loop.
    """
    last = len(windows) - 1
    new = windows[last]
    if new.descriptors is None:
        return None
    old = [number for number, window in enumerate(windows[:last]) if window.end + apart <= new.first]
    if not old:
        return None
    everything = torch.cat([window.descriptors for window in windows if window.descriptors is not None])
    common = everything.mean(0)
    mine = torch.nn.functional.normalize(new.descriptors - common, dim=1)
    best: Candidate | None = None
    for number in old:
        theirs = windows[number].descriptors
        if theirs is None:
            continue
        alike = mine @ torch.nn.functional.normalize(theirs - common, dim=1).mT
        value, place = alike.flatten().max(0)
        if best is None or value.item() > best.likeness:
            here, there = divmod(int(place), alike.shape[1])
            best = Candidate((number, last), (there, here), value.item())
    return best if best is not None and best.likeness >= LEAST_LIKENESS else None


def visit(frame: int, frames: int, most: int) -> slice:
    """Up to `most` neighboring frames around one of `frames`."""
    count = min(most, frames)
    first = min(max(frame - count // 2, 0), frames - count)
    return slice(first, first + count)


def seen_by_both(one: Views, other: Views) -> float:
    """For views in one world: the share of pixels of each that some frame of the other sees at that depth; the smaller
    of both.
    """
    return min(_seen(one, other), _seen(other, one))


def _seen(views: Views, by: Views) -> float:
    height, width = by.depth.shape[1:]
    points = unproject_depth(views.depth, views.extrinsic, views.intrinsic)[:, ::_STRIDE, ::_STRIDE]
    valid = (views.content & views.depth.isfinite())[:, ::_STRIDE, ::_STRIDE].flatten()
    points = points.reshape(-1, 3)[valid & points.isfinite().all(-1).flatten()]
    if not len(points):
        return 0.0
    seen = torch.zeros(len(points), dtype=torch.bool)
    for extrinsic, intrinsic, depth in zip(by.extrinsic, by.intrinsic, by.depth, strict=True):
        pixels, far = project_points(points, extrinsic, intrinsic)
        column, row = pixels.round().nan_to_num(-1, -1, -1).unbind(-1)
        inside = (far > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        there = depth[row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long()]
        seen |= inside & ((far / there - 1).abs() < DEPTH_TOLERANCE)
    return seen.float().mean().item()


def reach(views: Views) -> float:
    """A typical depth."""
    depth: Tensor = views.depth[views.content & views.depth.isfinite()]
    return depth.median().item()
