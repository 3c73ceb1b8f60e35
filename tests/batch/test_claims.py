"""Claims of living, suspended and killed holders, on this machine and, by their content, on others."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from vggt_int8.batch import Claims
from vggt_int8.batch.claims import Holder

QUICK = {"heartbeat": 0.02, "stale_after": 0.3}


def test_one_of_two_gets_it(tmp_path: Path) -> None:
    with Claims(tmp_path) as ours, Claims(tmp_path) as theirs:
        assert ours.take("kitchen")
        assert not theirs.take("kitchen")
        assert theirs.take("garden")
        ours.release("kitchen")
        assert theirs.take("kitchen")
        assert theirs.held == {"kitchen", "garden"}
    assert list(tmp_path.iterdir()) == []


def test_one_of_many_threads_gets_it(tmp_path: Path) -> None:
    claims, got, start = [Claims(tmp_path) for _ in range(8)], [], threading.Barrier(8)

    def take(one: Claims) -> None:
        start.wait()
        got.append(one.take("kitchen"))

    threads = [threading.Thread(target=take, args=(one,)) for one in claims]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 7 + [True]


def test_a_claim_that_is_kept_fresh_is_not_taken_over(tmp_path: Path) -> None:
    with Claims(tmp_path, **QUICK) as ours, Claims(tmp_path, **QUICK) as theirs:
        assert ours.take("kitchen")
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            assert not theirs.take("kitchen")
            time.sleep(0.01)


def elsewhere(folder: Path, name: str, token: str = "other") -> Path:
    """A claim of a process on another machine."""
    holder = {"host": "far", "boot": "another", "namespace": "pid:[1]", "pid": 1, "started": "1"}
    path = folder / f"{name}.claim"
    path.write_text(json.dumps({"token": token, "holder": holder}))
    return path


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"holder": {"pid": 1}}'])
def test_an_abandoned_claim_is_taken_over_after_a_while(tmp_path: Path, content: str | None) -> None:
    path = elsewhere(tmp_path, "kitchen")
    if content is not None:
        path.write_text(content)
    os.utime(path, (0, 0))  # what a clock that is wrong would have written; no clocks are compared
    with Claims(tmp_path, **QUICK) as ours:
        start = time.monotonic()
        while not ours.take("kitchen"):
            time.sleep(0.01)
        assert time.monotonic() - start > 0.29
    assert list(tmp_path.iterdir()) == []


def test_a_dead_process_on_this_machine_is_not_waited_for(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with Claims(tmp_path) as claims:
            claims.take("kitchen")
            claims.take("cellar")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    with Claims(tmp_path) as ours, Claims(tmp_path) as theirs:
        assert (tmp_path / "kitchen.claim").exists()
        assert ours.take("kitchen")
        elsewhere(tmp_path, "garden")
        theirs.remove_abandoned()
        assert sorted(path.stem for path in tmp_path.glob("*.claim")) == ["garden", "kitchen"]


def test_a_process_id_that_was_given_again_is_another_process() -> None:
    this = Holder.this()
    assert not this.is_gone()
    assert Holder(this.host, this.boot, this.namespace, this.pid, "1").is_gone()
    assert not Holder(this.host, "another boot", this.namespace, this.pid, "1").is_gone()


@pytest.mark.parametrize("step", ["_is_stale", "_content"])
def test_whoever_takes_over_second_leaves_the_first_its_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Two see the same stale claim; one is slow, and renames what is the other's by then."""
    elsewhere(tmp_path, "kitchen")
    slow, fast = Claims(tmp_path, stale_after=-1), Claims(tmp_path, stale_after=-1)
    real = getattr(slow, step)

    def late(path: Path) -> object:
        found = real(path)
        if found and not fast.held:
            assert fast.take("kitchen")
        return found

    monkeypatch.setattr(slow, step, late)
    assert not slow.take("kitchen")
    assert slow._content(tmp_path / "kitchen.claim")["token"] == fast.token
    assert [path.name for path in tmp_path.iterdir()] == ["kitchen.claim"]


def test_what_was_taken_over_is_not_given_up_by_its_former_holder(tmp_path: Path) -> None:
    with Claims(tmp_path, **QUICK) as ours:
        assert ours.take("kitchen")
        elsewhere(tmp_path, "kitchen")
    assert (tmp_path / "kitchen.claim").exists()


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with Claims(tmp_path) as ours, Claims(tmp_path) as theirs:
        assert ours.take("kitchen")
        assert not theirs.take("kitchen")


def test_others_are_those_that_live(tmp_path: Path) -> None:
    with Claims(tmp_path, **QUICK) as ours:
        ours.take("us")
        assert not ours.others()
        for name in ("them", "these", "those"):
            elsewhere(tmp_path, name)
        assert ours.others()
        time.sleep(0.35)
        assert not ours.others(), "all were waited for at the same time"
