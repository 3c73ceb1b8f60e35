"""The cache of CUDA graphs: what it captures when, and what it forgets. The graphs themselves: `cuda/`."""

import pytest
import torch
from torch import Tensor

from vggt_int8.runtime import graphs
from vggt_int8.runtime.graphs import CAPACITY, REMEMBERED, GraphCache, Key


class Recorder(GraphCache):
    """Captures by remembering the function, replays by calling it: everything but CUDA."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []

    def _record(self, function: object, inputs: dict[str, Tensor]) -> graphs._Captured:
        self.log.append("capture")
        return graphs._Captured(function, inputs, {})

    def _replay(self, key: Key, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        self._graphs.move_to_end(key)
        self.log.append("replay")
        return self._graphs[key].graph(inputs)


def double(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"y": 2 * inputs["images"]}


def run(cache: GraphCache, size: int, *work: object) -> bool:
    images = torch.rand(size)
    outputs, replayed = cache.run(double, {"images": images}, *work)
    assert torch.equal(outputs["y"], 2 * images)
    return replayed


def test_a_shape_is_captured_when_it_comes_again() -> None:
    cache = Recorder()
    assert [run(cache, 3) for _ in range(4)] == [False, True, True, True]
    assert cache.log == ["capture", "replay", "replay", "replay"]
    assert [key.images for key in cache.captured] == [(3,)]


def test_a_call_that_failed_has_warmed_nothing_up() -> None:
    def stopped(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        raise KeyboardInterrupt

    cache = Recorder()
    with pytest.raises(KeyboardInterrupt):
        cache.run(stopped, {"images": torch.rand(3)})
    assert [run(cache, 3) for _ in range(2)] == [False, True]


def test_the_layout_tells_calls_apart() -> None:
    cache = Recorder()
    run(cache, 3)
    assert not cache.run(double, {"images": torch.rand(6)[::2]})[1]


def test_shape_dtype_and_work_tell_calls_apart() -> None:
    cache = Recorder()
    for _ in range(2):
        run(cache, 3, "a")
        run(cache, 3, "b")
        run(cache, 4, "a")
        cache.run(double, {"images": torch.rand(3).double()}, "a")
    assert len(cache.captured) == 4


def test_the_least_recently_used_goes() -> None:
    cache = Recorder()
    for size in range(1, CAPACITY + 1):
        run(cache, size)
        run(cache, size)
    run(cache, 1)
    run(cache, 99)
    run(cache, 99)
    assert [key.images[0] for key in cache.captured] == [*range(3, CAPACITY + 1), 1, 99]


def test_shapes_that_came_once_are_forgotten_too() -> None:
    cache = Recorder()
    for size in range(1, REMEMBERED + 10):
        assert not run(cache, size)
    assert len(cache._seen) == REMEMBERED
    assert not run(cache, 1)


def test_a_failed_capture_leaves_nothing_behind() -> None:
    cache = Recorder()
    run(cache, 3)

    def fail(function: object, inputs: object) -> graphs._Captured:
        raise torch.OutOfMemoryError("CUDA out of memory")

    cache._record = fail
    with pytest.raises(torch.OutOfMemoryError):
        run(cache, 3)
    assert cache.captured == ()
    del cache._record
    assert run(cache, 3)


def test_clear() -> None:
    cache = Recorder()
    run(cache, 3)
    cache.clear()
    assert not run(cache, 3)
