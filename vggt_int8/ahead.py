"""Prefetching: `begun(function, items)` is `map(function, items)` on background threads, in order.

Decoding and resizing of images release Python's lock, so threads suffice, and pixels need not be copied between
processes. At most `results` results exist beside those already returned, and twice as many items as workers, however
long `items` is.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from vggt_int8.cpus import cores

T = TypeVar("T")
R = TypeVar("R")

MOST_WORKERS = 16
_PATIENCE = 0.1  # seconds after which a thread that waits looks whether it is still wanted


def worker_count() -> int:
    """Threads for decoding: the number of cores available to this process, up to `MOST_WORKERS`."""
    return min(cores(), MOST_WORKERS)


@contextmanager
def begun(
    function: Callable[[T], R], items: Iterable[T], *, workers: int | None = None, results: int | None = None
) -> Iterator[Iterator[R]]:
    """`function` of each item, in order, computed by threads that start immediately and end with the block.

    items: consumed one by one by a single thread, as far ahead as buffers allow, so it may be a video or a camera.
    workers: threads for `function`, by default `worker_count()`.
    results: largest number of buffered results, by default twice as many as workers.

    Exceptions of `function` or `items` are raised in place of the result.
    """
    workers = workers or worker_count()
    waiting: queue.Queue[Future[R] | None] = queue.Queue(results or 2 * workers)
    room = threading.Semaphore(2 * workers)  # for items, which may be far larger than what becomes of them
    stop = threading.Event()

    def put(item: "Future[R] | None") -> bool:
        while not stop.is_set():
            try:
                waiting.put(item, timeout=_PATIENCE)
                return True
            except queue.Full:
                continue
        return False

    def feed(pool: ThreadPoolExecutor) -> None:
        try:
            for item in items:
                # Reserve the place in the queue before the work, or there would be one result too many.
                promise: Future[R] = Future()
                if not put(promise):
                    return
                while not room.acquire(timeout=_PATIENCE):
                    if stop.is_set():
                        return
                pool.submit(_keep, promise, function, item).add_done_callback(lambda _: room.release())
        except BaseException as error:
            failed: Future[R] = Future()
            failed.set_exception(error)
            put(failed)
        else:
            put(None)

    with ThreadPoolExecutor(workers, thread_name_prefix="ahead") as pool:
        feeder = threading.Thread(target=feed, args=(pool,), name="ahead-feeder", daemon=True)
        feeder.start()
        try:
            yield _results(waiting)
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            feeder.join(timeout=1)  # it may wait for a camera, and ends with the process then


def _results(waiting: "queue.Queue[Future[R] | None]") -> Iterator[R]:
    while (promise := waiting.get()) is not None:
        yield promise.result()


def _keep(promise: "Future[R]", function: Callable[[T], R], item: T) -> None:
    try:
        promise.set_result(function(item))
    except BaseException as error:
        promise.set_exception(error)
