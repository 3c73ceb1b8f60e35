"""Results in order, as far ahead as there is room, and errors where they belong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from vggt_int8.ahead import MOST_WORKERS, begun, worker_count


def test_results_come_in_the_order_of_the_items() -> None:
    def slow_first(number: int) -> int:
        time.sleep(0.02 if number == 0 else 0)
        return number * number

    with begun(slow_first, range(50), workers=4) as results:
        assert list(results) == [number * number for number in range(50)]
    with begun(slow_first, []) as results:
        assert list(results) == []


def test_workers_run_beside_one_another_and_beside_the_caller() -> None:
    meeting = threading.Barrier(4)  # three workers and the caller: would wait for ever if they took turns

    def meet(number: int) -> int:
        meeting.wait(timeout=10)
        return number

    with begun(meet, range(3), workers=3) as results:
        meeting.wait(timeout=10)
        assert list(results) == [0, 1, 2]


def test_no_more_is_taken_than_there_is_room_for() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    with begun(lambda number: number, items(), workers=2, results=5) as results:
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        time.sleep(0.2)
        assert len(taken) <= 3 + 5 + 1  # handed out, waiting, and one that waits for room
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_what_was_begun_runs_before_anybody_asks_and_ends_with_the_block() -> None:
    done = threading.Event()

    def work(number: int) -> int:
        if number == 4:
            done.set()
        return number

    with begun(work, range(5), results=5) as results:
        assert done.wait(timeout=10)
        assert list(results) == [0, 1, 2, 3, 4]
    with begun(time.sleep, [0.01] * 1000, workers=1):
        pass  # nobody wants them
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_items_that_wait_for_a_worker_are_few_however_many_results_may_wait() -> None:
    taken, go = list[int](), threading.Event()

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    with begun(lambda number: number if go.wait(timeout=10) else -1, items(), workers=2, results=1000) as results:
        time.sleep(0.2)
        assert len(taken) == 2 * 2 + 1  # at work or waiting, and one in the feeder's hands
        go.set()
        assert list(results) == list(range(100))


def test_errors_come_where_the_result_would_have() -> None:
    def invert(number: int) -> float:
        return 1 / number

    with begun(invert, [1, 2, 0, 4], workers=2) as results:
        assert [next(results), next(results)] == [1, 0.5]
        with pytest.raises(ZeroDivisionError):
            next(results)

    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the camera is gone")

    with begun(invert, broken()) as results:
        assert next(results) == 1
        with pytest.raises(OSError, match="the camera is gone"):
            next(results)


@pytest.mark.parametrize(("cpus", "quota", "workers"), [(4, None, 4), (4, 2, 2), (2, 4, 2), (64, None, MOST_WORKERS)])
def test_workers_are_as_many_as_cpus_that_may_be_used(
    monkeypatch: pytest.MonkeyPatch, cpus: int, quota: int | None, workers: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cpus)), raising=False)
    monkeypatch.setattr("vggt_int8.cpus.quota", lambda: quota)
    assert worker_count() == workers
