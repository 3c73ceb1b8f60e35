"""Threads of our own, for work on many tensors: a tensor or a layer each, and nobody waits for anybody in between.

PyTorch splits every operation over its threads and waits for the last of them. An operation of 100 us then takes as
long as the system's scheduler keeps one thread off its core, milliseconds where other processes want the cores, and
quantizing VGGT-1B has 20,000 of them. So a tensor belongs to one thread here, which works on `pieces` that PyTorch
does not split.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import BoundedSemaphore
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from vggt_int8.machine import threads

# Elements that PyTorch leaves to the thread that asks (`at::internal::GRAIN_SIZE` is one more). They fit in a cache.
PIECE = (1 << 15) - 1
_AT_MOST = 16  # threads: more wait for Python's lock
_WAITING = 1  # jobs a thread that are given out before they are begun

Item = TypeVar("Item")
Result = TypeVar("Result")


def pieces(tensor: Tensor) -> Iterable[Tensor]:
    """A dense tensor on a CPU as flat views of at most `PIECE` elements; any other as it is."""
    if tensor.device.type != "cpu" or tensor.numel() <= PIECE or not tensor.is_contiguous():
        return (tensor,)
    return tensor.view(-1).split(PIECE)


class Workers:
    """Runs jobs on `threads()` threads, without gradients, in a `with` block that ends when all are done.

    `submit` waits while many jobs wait, so that what they read is not all in memory. An error in the block cancels the
    jobs that have not begun. `failed`: whether a job has raised.
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
    """`[work(item) for item in items]` on `Workers`. Raises what the first of the items that fail raises.

    After a failure no more items are given out.
    """
    futures: list[Future[Result]] = []
    with Workers() as workers:
        for item in items:
            futures.append(workers.submit(work, item))
            if workers.failed:
                break
        return [future.result() for future in futures]  # those before the one that failed were begun before it
