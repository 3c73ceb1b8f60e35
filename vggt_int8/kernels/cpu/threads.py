"""A thread pool for work on many tensors: one tensor or layer per thread, without synchronization in between.

PyTorch splits every operation over its threads and waits for the last one. An operation of 100 us then takes
milliseconds if other processes keep one thread off its core, and quantizing VGGT-1B has 20,000 of them. Here each
tensor is processed by one thread, in `pieces` that PyTorch does not split.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import BoundedSemaphore
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from vggt_int8.machine import threads

# Number of elements up to which PyTorch stays on the calling thread (`at::internal::GRAIN_SIZE` is one more). They fit
# in a cache.
PIECE = (1 << 15) - 1
_AT_MOST = 16  # threads: more wait for Python's lock
_WAITING = 1  # jobs a thread that are given out before they are begun

Item = TypeVar("Item")
Result = TypeVar("Result")


def pieces(tensor: Tensor) -> Iterable[Tensor]:
    """A dense tensor on a CPU as flat views of at most `PIECE` elements; any other tensor as it is."""
    if tensor.device.type != "cpu" or tensor.numel() <= PIECE or not tensor.is_contiguous():
        return (tensor,)
    return tensor.view(-1).split(PIECE)


class Workers:
    """Runs jobs on `threads()` threads, without gradients, in a `with` block that ends when all are done.

    `submit` blocks while many jobs are queued, which bounds the memory of their inputs. An error in the block cancels
    the jobs that have not started. `failed`: whether a job has raised.
    """

    def __init__(self) -> None:
        count = min(threads(), _AT_MOST)
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="vggt-int8")
        self._room = BoundedSemaphore((1 + _WAITING) * count)
        self.failed = False

    def submit(self, work: Callable[..., Result], *arguments: Any) -> "Future[Result]":
        self._room.acquire()
        try:
            future = self._pool.submit(torch.no_grad()(work), *arguments)
        except BaseException:
            self._room.release()
            raise
        future.add_done_callback(self._ended)
        return future

    def _ended(self, future: "Future[Any]") -> None:
        if not future.cancelled() and future.exception() is not None:
            self.failed = True
        self._room.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=error is not None)


def map_in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """`[work(item) for item in items]` on `Workers`. Raises the error of the first item that failed.

    After a failure no more items are submitted. With a single thread the caller computes: handing an item over takes
    longer than most items do.
    """
    if threads() == 1:
        with torch.no_grad():
            return [work(item) for item in items]
    futures: list[Future[Result]] = []
    with Workers() as workers:
        for item in items:
            futures.append(workers.submit(work, item))
            if workers.failed:
                break
        return [future.result() for future in futures]  # those before the one that failed were begun before it
