"""Which frames of a video are taken: pure functions over (seconds, frame) in order of time."""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from numbers import Real
from typing import TypeVar

from vggt_int8.plain_data import check_integer, shown

T = TypeVar("T")
Timed = tuple[float, T]


def check_choice(fps: float | None, every: int | None, start: float | None, end: float | None, sharpest: bool) -> None:
    """Raise ValueError or TypeError, naming the value, for options that `pick` does not accept."""
    for name, value in (("fps", fps), ("start", start), ("end", end)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
            raise TypeError(f"{name} is {shown(value)}; it must be a number")
    if fps is not None and every is not None:
        raise ValueError(f"fps {fps:g} and every {every} both say which frames are taken: leave one out")
    if fps is not None and not 0 < fps < math.inf:
        raise ValueError(f"fps is {fps:g}; it must be a positive number of frames a second")
    if every is not None:
        check_integer("every", every)
        if every < 1:
            raise ValueError(f"every is {every}; it must be at least 1")
    for name, value in (("start", start), ("end", end)):
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value:g}; it must be a time in seconds, 0 or later")
    if end is not None and end <= (start or 0):
        raise ValueError(f"end {end:g} must be later than start {start or 0:g}")
    if sharpest and fps is None and (every or 1) < 2:
        raise ValueError("sharpest= chooses among the frames of an interval: give fps=, or every= of at least 2")


def pick(
    frames: Iterable[Timed[T]],
    *,
    fps: float | None = None,
    every: int | None = None,
    start: float | None = None,
    end: float | None = None,
    sharpness: Callable[[T], float] | None = None,
) -> Iterator[Timed[T]]:
    """The frames from `start` to `end`, excluding the latter: all, every n-th, or a number per second.

    fps: for each tick (start + k / fps) take the frame nearest in time, each frame once; ticks are skipped while the
        video shows nothing new.
    sharpness: take instead, of each interval between ticks (or of each `every` frames), the first frame with the
        largest value. At most two frames are held.
    """
    inside = _between(frames, start, end)
    if sharpness is not None:
        measure = sharpness
        for _, group in groupby(enumerate(inside), lambda item: _interval(item[0], item[1][0], fps, every, start)):
            yield max((item for _, item in group), key=lambda item: measure(item[1]))
    elif fps is not None:
        yield from _nearest_to_ticks(inside, fps, start or 0.0, math.inf if end is None else end)
    else:
        yield from (item for number, item in enumerate(inside) if number % (every or 1) == 0)


def _between(frames: Iterable[Timed[T]], start: float | None, end: float | None) -> Iterator[Timed[T]]:
    for seconds, frame in frames:
        if end is not None and seconds >= end:
            return
        if start is None or seconds >= start:
            yield seconds, frame


def _interval(number: int, seconds: float, fps: float | None, every: int | None, start: float | None) -> int:
    # A microsecond: times of files are rounded, by whole milliseconds in Matroska, and a tick is not to be missed.
    return number // (every or 1) if fps is None else math.floor((seconds - (start or 0.0)) * fps + 1e-6)


def _nearest_to_ticks(frames: Iterable[Timed[T]], fps: float, start: float, end: float) -> Iterator[Timed[T]]:
    tick = 0
    before: Timed[T] | None = None  # the last frame, if it was not taken
    for seconds, frame in frames:
        while seconds - start >= tick / fps:
            if before is not None and start + tick / fps - before[0] < seconds - start - tick / fps:
                yield before
                before = None
                tick += 1
                continue
            yield seconds, frame
            tick = math.floor((seconds - start) * fps + 1e-6) + 1
            break
        else:
            before = (seconds, frame)
            continue
        before = None
    ahead = start + tick / fps
    if before is not None and ahead < end and ahead - before[0] < 0.5 / fps:
        yield before
