"""Threads of our own, for work on many tensors: a tensor or a layer each, and nobody waits for anybody in between.

PyTorch splits every operation over its threads and waits for the last of them. An operation of 100 us then takes as
long as the system's scheduler keeps one thread off its core, milliseconds where other processes want the cores, and
quantizing VGGT-1B has 20,000 of them. So a tensor belongs to one thread here, which works on `pieces` that PyTorch
does not split.
"""

import functools
import math
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import BoundedSemaphore
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

# Elements that PyTorch leaves to the thread that asks (`at::internal::GRAIN_SIZE` is one more). They fit in a cache.
PIECE = (1 << 15) - 1
_AT_MOST = 16  # threads: more wait for Python's lock
_WAITING = 1  # jobs a thread that are given out before they are begun

Item = TypeVar("Item")
Result = TypeVar("Result")


def threads() -> int:
    """How many threads compute at once: as many as PyTorch uses, but no more than this process has CPUs by quota."""
    limit = quota()
    return torch.get_num_threads() if limit is None else min(torch.get_num_threads(), limit)


@functools.cache
def quota(root: Path = Path("/")) -> int | None:
    """CPUs that the control group of this process may use, rounded up; None if it may use all. Read once.

    Containers are limited so (`docker run --cpus`, Kubernetes), and neither the count of CPUs nor their mask shows it.
    The smallest limit of all groups above counts. `root`: where /proc and /sys are.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux, or no /proc
        return None
    limits = []
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        group = mount / path.lstrip("/")
        # A container may see its own group as the root of the mount, under the name that the host has for it.
        folders = [folder for folder in (group, *group.parents) if folder.is_relative_to(mount)]
        limits += [limit for folder in folders for limit in _limit(folder)]
    return max(1, math.ceil(min(limits))) if limits else None


def _limit(folder: Path) -> list[float]:
    """The CPUs that a group may use by its own files, of version 2 or 1: one number, or none if it has no limit."""
    try:
        if (folder / "cpu.max").exists():
            most, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        else:
            most, period = (
                (folder / name).read_text(encoding="utf-8") for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            )
        return [int(most) / int(period)] if most != "max" and int(most) > 0 and int(period) > 0 else []
    except (OSError, ValueError):  # a group without this controller
        return []


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
