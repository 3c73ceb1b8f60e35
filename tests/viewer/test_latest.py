"""Of requests that come faster than they can be done the newest is done; an error reaches whoever waits."""

import threading

import pytest

from vggt_int8.viewer.latest import Latest


def test_the_newest_request_is_done_and_those_between_are_dropped() -> None:
    latest, begun, go_on, done = Latest(), threading.Event(), threading.Event(), []

    def slow() -> None:
        begun.set()
        assert go_on.wait(30)
        done.append("first")

    latest.request(slow)
    assert begun.wait(30)
    for name in "abc":
        latest.request(lambda name=name: done.append(name))
    assert not latest.wait(timeout=0.01)
    go_on.set()
    assert latest.wait(timeout=30)
    assert done == ["first", "c"]
    latest.close()


def test_an_error_is_raised_where_somebody_waits() -> None:
    latest = Latest()

    def fail() -> None:
        raise OSError("the file is gone")

    latest.request(fail)
    with pytest.raises(OSError, match="the file is gone"):
        latest.wait_for_error(timeout=30)
    with pytest.raises(OSError, match="the file is gone"):
        latest.wait()
    latest.close()
