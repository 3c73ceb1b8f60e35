"""Processes a scene's frames in parallel with a thread pool, and computes a frame's pixels in the world.

The threads use NumPy, not PyTorch: its functions release the interpreter lock and start no threads. PyTorch starts as
many threads as there are cores in each thread that calls it.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from vggt_int8.images import ImageTransform
from vggt_int8.machine import threads

Array = NDArray[np.float32]
Result = TypeVar("Result")
Item = TypeVar("Item")
Arguments = ParamSpec("Arguments")
_MOST = 8  # threads: more take turns at the interpreter's lock instead of computing
_TOGETHER = 4  # items of one kind of work that a thread takes at a time
_BETWEEN = 16  # of these, before memory is given back


@contextmanager
def frame_pool(release: Callable[[], None] | None = None) -> Iterator[ThreadPoolExecutor]:
    """A pool with as many threads as this machine computes with, up to `_MOST`. After an error, queued work is
    cancelled.

    release: called now and then to free memory, as `Scene.release_pages` does.
    """
    workers = _workers()
    pool = ThreadPoolExecutor(workers) if release is None else _ReleasingPool(workers, release)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _workers() -> int:
    return max(1, min(threads(), _MOST))


class _ReleasingPool(ThreadPoolExecutor):
    def __init__(self, workers: int, release: Callable[[], None]) -> None:
        super().__init__(workers)
        self._release, self._number = release, count(1)

    def submit(
        self, work: Callable[Arguments, Result], /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Future[Result]:
        def counted() -> Result:
            try:
                return work(*args, **kwargs)
            finally:
                if next(self._number) % _BETWEEN == 0:
                    self._release()

        return super().submit(counted)


def in_order(pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """`work` of each item, in their order; only some more than there are threads are under way or waiting.

    Of many items a thread takes several at a time: each time that it takes some, others wait for the lock.
    """
    together = min(max(len(items) // (4 * _workers()), 1), _TOGETHER)
    ahead = 2 * _workers() if together == 1 else _workers() + 1
    waiting: list[Future[list[Result]]] = []
    try:
        for first in range(0, len(items), together):
            waiting.append(pool.submit(lambda some: [work(item) for item in some], items[first : first + together]))
            if len(waiting) > ahead:
                yield from waiting.pop(0).result()
        while waiting:
            yield from waiting.pop(0).result()
    finally:
        for future in waiting:
            future.cancel()


def content_box(transform: ImageTransform) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the original inside the model's image, in pixels: without padding."""
    (height, width), (left, top) = transform.model_size, transform.offset
    original_height, original_width = transform.original_size
    right, bottom = left + original_width * transform.scale[0], top + original_height * transform.scale[1]
    return max(round(left), 0), max(round(top), 0), min(round(right), width), min(round(bottom), height)


def shows_everywhere(transform: ImageTransform) -> bool:
    """Whether `content_of` is True for all pixels, as it mostly is."""
    height, width = transform.model_size
    return transform.opaque is None and content_box(transform) == (0, 0, width, height)


def content_of(transform: ImageTransform) -> NDArray[np.bool_]:
    """bool [H, W]: `transform.content_mask()`, which starts threads of PyTorch's own in each thread that calls it."""
    left, top, right, bottom = content_box(transform)
    content = np.zeros(transform.model_size, np.bool_)
    content[top:bottom, left:right] = True
    if transform.opaque is not None:
        content &= transform.opaque.numpy()
    return content


def surface_normals(points: Array, center: NDArray[Any]) -> Array:
    """World points [H, W, 3] of a frame -> unit normals that face its camera, 0 where there is no surface.

    From the points beside, above and below: across a step in depth they mean little.
    """
    across, down = np.empty_like(points), np.empty_like(points)
    _differences(points, across)
    _differences(points.swapaxes(0, 1), down.swapaxes(0, 1))
    normals: Array = np.cross(down, across).astype(np.float32, copy=False)
    with np.errstate(invalid="ignore", over="ignore"):
        normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), np.float32(1e-30))
        away = ((points - center.astype(np.float32)) * normals).sum(-1, keepdims=True) > 0
    np.negative(normals, out=normals, where=away)
    normals[~np.isfinite(normals).all(-1)] = 0
    return normals


def depth_steps(depth: Array) -> Array:
    """Depth [H, W] -> how far the nearest and farthest of a pixel and its eight neighbours are from each other, over
    the nearest: 0 on a wall that is faced, large where one surface hides another.
    """
    padded = np.pad(depth, 1, mode="edge")
    height, width = depth.shape
    wide = [padded[:, i : i + width] for i in range(3)]
    low, high = np.minimum(np.minimum(*wide[:2]), wide[2]), np.maximum(np.maximum(*wide[:2]), wide[2])
    low = np.minimum(np.minimum(low[:height], low[1 : height + 1]), low[2:])
    high = np.maximum(np.maximum(high[:height], high[1 : height + 1]), high[2:])
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        steps: Array = ((high - low) / low).astype(np.float32, copy=False)
    return steps


def _differences(points: Array, out: Array) -> None:
    """Along the second axis: of both neighbours, of one at the borders; 0 where there is but one column."""
    if points.shape[1] < 2:
        out[:] = 0
        return
    np.subtract(points[:, 2:], points[:, :-2], out=out[:, 1:-1])
    np.subtract(points[:, 1], points[:, 0], out=out[:, 0])
    np.subtract(points[:, -1], points[:, -2], out=out[:, -1])
