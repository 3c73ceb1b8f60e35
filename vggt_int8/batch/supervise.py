"""`supervise`: starts worker processes, records what kills them, restarts them, and waits until all is done.

A scene that kills its process (a decoder fault, no memory left, a GPU fault) therefore costs only that scene. A
launcher such as torchrun ends all its processes as soon as one fails; it never sees a failure before all work is done.
"""

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from vggt_int8.batch.board import Board
from vggt_int8.batch.claims import Claims
from vggt_int8.cpus import cores

RESTART = 75  # exit code of a worker that noted itself why it cannot go on
NO_PLACE = 74  # of one that cannot write results, and has said so
BAD_INPUT = 2
DEATHS_WITHOUT_PROGRESS = 3
GRACE = 60.0  # seconds for a worker to finish what it writes after a signal
# What launchers tell their processes. Ours compute alone: a library that finds these would wait for the others.
_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
_LAUNCHER_PREFIXES = ("TORCHELASTIC_", "ACCELERATE_", "ROLE_", "GROUP_WORLD")


@dataclass
class _Slot:
    """A place for one worker at a time. command: of its token."""

    command: Callable[[str], Sequence[str]]
    token: str = ""
    process: "subprocess.Popen[bytes] | None" = None
    deaths: int = 0
    progress: int = -1  # of the board when it was last started
    ended: bool = field(default=False)


class BadInput(Exception):
    """A worker refused its input, and has said so."""


def supervise(
    board: Board, commands: Sequence[Callable[[str], Sequence[str]]], note: Callable[[str], None], poll: float = 0.5
) -> None:
    """Run one worker for each command until all scenes are done or given up, by any process.

    commands: each takes a worker's token, under which it claims scenes.
    note: called with messages about what happens.

    A worker exits with 0 when all scenes are through, `RESTART` to be restarted, `NO_PLACE` to be left alone, and
    `BAD_INPUT` if nothing can be done as requested, which raises `BadInput`. Any other exit counts as a death; a worker
    that dies three times without any progress in between is given up.
    """
    slots = [_Slot(command) for command in commands]
    with Claims(board.state / "workers") as alive, _ending(slots):
        alive.remove_abandoned()
        Claims(board.claims_folder).remove_abandoned()  # of scenes that are done, too, which nobody asks for any more
        alive.take(alive.token)
        for slot in slots:
            _start(board, slot, len(slots))
        while not all(slot.ended for slot in slots):
            time.sleep(poll)
            for slot in slots:
                if slot.process is not None and slot.process.poll() is not None:
                    _ended(board, slot, slot.process.returncode, note, len(slots))
        while board.unfinished() and alive.others():  # all of ours are given up: others may be at it
            time.sleep(poll)


def _start(board: Board, slot: _Slot, workers: int) -> None:
    slot.token, slot.progress = secrets.token_hex(8), board.progress()
    # A worker ends when its stdin does, which is when we do, however that comes about.
    slot.process = subprocess.Popen(slot.command(slot.token), stdin=subprocess.PIPE, env=_environment(workers))


def _environment(workers: int) -> dict[str, str]:
    """The environment of a worker: without a launcher's variables, and with its share of the cores.

    Launchers allow their processes one thread unless OMP_NUM_THREADS is set: too few to write what a GPU produces.
    Without them each process would use all cores.
    """
    names = {name: value for name, value in os.environ.items() if name not in _LAUNCHER}
    environment = {name: value for name, value in names.items() if not name.startswith(_LAUNCHER_PREFIXES)}
    launched = "LOCAL_WORLD_SIZE" in os.environ
    if launched and environment.get("OMP_NUM_THREADS") == "1":
        del environment["OMP_NUM_THREADS"]
    here = workers * int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if here > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // here)))
    return environment


def _ended(board: Board, slot: _Slot, code: int, note: Callable[[str], None], workers: int) -> None:
    slot.process = None
    if code in (0, NO_PLACE):
        slot.ended = True
        return
    if code == BAD_INPUT:
        raise BadInput
    if code != RESTART:
        how = _how(code)
        _blame(board, slot.token, how)
        note(f"a worker {how}")
    slot.deaths = 1 if board.progress() > slot.progress else slot.deaths + 1
    if slot.deaths >= DEATHS_WITHOUT_PROGRESS:
        slot.ended = True
        note(f"a worker is given up: it ended {slot.deaths} times without getting anything done")
        return
    if board.unfinished():
        _start(board, slot, workers)
    else:
        slot.ended = True


def _blame(board: Board, token: str, how: str) -> None:
    """Record the scenes that a dead worker held: a single one as the cause of its death, several as suspects."""
    held = Claims(board.claims_folder).release_all_of(token)
    scenes = [scene for key in held if (scene := board.scene_of(key)) is not None]
    if len(scenes) == 1:
        board.add_failure(
            scenes[0], f"the process {how} while it was at this scene alone", final=False, stage="process"
        )
    for scene in scenes if len(scenes) > 1 else ():
        board.suspect(scene.key)


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")


@contextmanager
def _ending(slots: Sequence[_Slot]) -> Iterator[None]:
    """Workers do not outlive the block: they are asked to exit, and killed after a while."""
    try:
        yield
    finally:
        running = [slot.process for slot in slots if slot.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + GRACE
        for process in running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def end_with_parent() -> None:
    """In a worker: a thread that ends the process when stdin closes, first as a signal would, then immediately."""
    stdin = sys.stdin.fileno()

    def watch() -> None:
        while os.read(stdin, 1):  # not by sys.stdin, whose lock the interpreter waits for when it ends
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
