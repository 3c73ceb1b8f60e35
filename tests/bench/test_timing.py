"""The timer: how often it calls, on what, and that it tells the time."""

import time

import pytest
import torch

from vggt_int8.bench.timing import FEWEST_RUNS, WARM_UPS, inputs_that_fill_the_cache, kernel_table, time_calls


def test_short_calls_are_warmed_up_and_take_inputs_in_turn() -> None:
    inputs, seen = [torch.tensor(i) for i in range(3)], []
    timing = time_calls(lambda x: seen.append(int(x)), inputs, seconds=0.02)
    assert timing.runs >= FEWEST_RUNS
    assert len(seen) == timing.runs + WARM_UPS
    assert seen[WARM_UPS : WARM_UPS + 4] == [0, 1, 2, 0]
    assert timing.low <= timing.ms <= timing.high


def test_long_calls_run_twice() -> None:
    timing = time_calls(lambda x: time.sleep(0.02), [torch.zeros(1)], seconds=0.01)
    assert timing.runs == 2
    assert 20 <= timing.ms < 60


def test_inputs_differ_and_exceed_the_cache_together() -> None:
    images = torch.rand(1, 3, 512, 518)
    inputs = inputs_that_fill_the_cache(images)
    assert inputs[0] is images
    assert 1 < len(inputs) <= 8
    assert not any(torch.equal(images, other) for other in inputs[1:])
    assert len(inputs_that_fill_the_cache(torch.empty(100, 3, 512, 518))) == 1


def test_kernel_table_is_sorted_and_adds_up() -> None:
    weight = torch.rand(200, 200)
    lines = kernel_table(lambda x: (x @ weight).relu(), torch.rand(300, 200)).splitlines()
    times = [float(line.split()[0]) for line in lines[2:]]
    assert times == sorted(times, reverse=True)
    assert "aten::mm" in lines[2]
    assert sum(times) == pytest.approx(float(lines[0].split()[0]), abs=0.02)
