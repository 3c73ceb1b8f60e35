"""`run_worker`: one process's share of a batch. It reads the next scene while it computes one and writes the last.

    reading      scene 3 |      scene 4 |
    computing            | scene 3      | scene 4
    writing    scene 2   |   scene 3    |

If a stage raises, the failure is recorded and the next scene comes. What kills the whole process is recorded by the
supervisor: the scenes that it held are then suspects, and are retried one at a time, alone.
"""

import errno
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

from vggt_int8.batch.board import Board, NoPlace
from vggt_int8.batch.claims import Claims
from vggt_int8.batch.scenes import SceneFolder
from vggt_int8.disk import message_of

NO_PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # where results go
# What another attempt would raise again: something is wrong with the images, or with the place they are in.
FINAL = (ValueError, TypeError, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)


class BadScene(ValueError):
    """The scene is unusable; another attempt would be in vain."""


class Broken(RuntimeError):
    """The process can no longer compute (a GPU's context after an illegal access), whether or not because of this
    scene.
    """


class Stages(Protocol):
    """What is done to a scene. Each stage may raise."""

    def read(self, scene: SceneFolder) -> Any:
        """Runs in its own thread, ahead of time."""

    def compute(self, scene: SceneFolder, item: Any) -> Any:
        """Runs in the main thread: the result of `read` -> the argument of `write`."""

    def write(self, scene: SceneFolder, result: Any) -> None:
        """Runs in its own thread. The results must appear as a whole; raises FileExistsError if they already exist."""


class _Work:
    """The scenes in progress, and the threads."""

    def __init__(self) -> None:
        self.reader, self.writer = ThreadPoolExecutor(1, "read"), ThreadPoolExecutor(1, "write")
        self.ahead: deque[tuple[SceneFolder, Future[Any]]] = deque()
        self.writing: deque[tuple[SceneFolder, Future[None]]] = deque()

    def __enter__(self) -> "_Work":
        return self

    def __exit__(self, *_: object) -> None:
        """What is being written is finished; what was read in vain is not waited for longer than it takes."""
        self.reader.shutdown(wait=False, cancel_futures=True)
        self.writer.shutdown(wait=True)


class _Worker:
    def __init__(
        self,
        board: Board,
        claims: Claims,
        stages: Stages,
        rank: int,
        peers: int,
        tell: Callable[[SceneFolder, str], None],
    ) -> None:
        self.board, self.claims, self.stages, self.tell = board, claims, stages, tell
        self.peers = peers
        start = rank * len(board.scenes) // max(1, peers)
        self.order = {scene.name: i for i, scene in enumerate(board.scenes[start:] + board.scenes[:start])}

    def next_scene(self, *, ahead: bool) -> SceneFolder | None:
        """Claim a scene; None if none is free.

        ahead: while another one is in progress. Near the end, when other processes may become idle, none is claimed
            ahead, and never one that may kill the process.
        """
        suspects = self.board.suspects()
        open_scenes = [scene for scene in self.board.unfinished() if scene.key not in self.claims.held]
        clean = [scene for scene in open_scenes if scene.key not in suspects]
        if ahead and len(clean) < self.peers:
            return None
        candidates = sorted(clean, key=lambda scene: self.order[scene.name])
        if not ahead and not self.claims.held:
            candidates += [scene for scene in open_scenes if scene.key in suspects]
        for scene in candidates:
            try:
                ours = self.claims.take(scene.key)
            except FileNotFoundError:
                self.board.check_place()
                raise
            if not ours:
                continue
            if not self.board.is_done(scene):  # it may have been finished since
                return scene
            self.claims.release(scene.key)
        return None

    def run(self, poll: float) -> None:
        with _Work() as work:
            while True:
                if not work.ahead:
                    self._read(work, ahead=bool(work.writing))
                if not work.ahead:
                    if work.writing:
                        self._finish(work)
                    elif self.board.unfinished():
                        time.sleep(poll)  # others are at them
                    else:
                        return
                    continue
                scene, reading = work.ahead.popleft()
                if scene.key not in self.board.suspects():
                    self._read(work, ahead=True)
                result = self._attempt(scene, "read", reading.result)
                if result is not None:
                    result = self._attempt(scene, "compute", partial(self.stages.compute, scene, *result))
                if result is not None:
                    work.writing.append((scene, work.writer.submit(self._write, scene, result[0])))
                while len(work.writing) > 1:
                    self._finish(work)

    def _read(self, work: _Work, *, ahead: bool) -> None:
        scene = self.next_scene(ahead=ahead)
        if scene is not None:
            work.ahead.append((scene, work.reader.submit(self.stages.read, scene)))

    def _write(self, scene: SceneFolder, result: Any) -> None:
        self.board.check_place()
        self.stages.write(scene, result)

    def _finish(self, work: _Work) -> None:
        """Wait for the scene that has been written longest."""
        scene, writing = work.writing.popleft()
        if self._attempt(scene, "write", writing.result) is not None:
            self.board.acquit(scene)
            self.claims.release(scene.key)
            self.tell(scene, "")

    def _attempt(self, scene: SceneFolder, stage: str, run: Callable[[], Any]) -> tuple[Any] | None:
        """The result of a stage; None if it raised, in which case the failure is recorded and reported, and the claim
        released.
        """
        try:
            return (run(),)
        except Broken as error:
            self._fail(scene, stage, error, final=False)
            raise
        except NoPlace:
            raise
        except Exception as error:
            if isinstance(error, FileExistsError) and self.board.is_done(scene):
                return (None,)  # another one was faster
            if stage == "write" and isinstance(error, OSError) and error.errno in NO_PLACE:
                self.claims.release(scene.key)
                raise NoPlace(message_of(error)) from error
            self._fail(scene, stage, error, final=isinstance(error, FINAL))
            return None

    def _fail(self, scene: SceneFolder, stage: str, error: Exception, *, final: bool) -> None:
        text = message_of(error)
        words = text if isinstance(error, BadScene) and text else f"{type(error).__name__}: {text}"
        try:
            self.board.add_failure(scene, words, final=final, stage=stage)
        except OSError as full:
            if full.errno not in NO_PLACE:
                raise
            self.claims.release(scene.key)
            raise NoPlace(f"{message_of(full)}; {scene.name} failed with {words}") from error
        self.board.acquit(scene)
        self.claims.release(scene.key)
        self.tell(scene, words)


def run_worker(
    board: Board,
    claims: Claims,
    stages: Stages,
    *,
    rank: int = 0,
    peers: int = 1,
    poll: float = 1.0,
    tell: Callable[[SceneFolder, str], None] = lambda scene, error: None,
) -> None:
    """Process scenes until all are done or given up, by any process.

    rank, peers: this process's index among all, so that they start at different scenes.
    poll: seconds between checks of others' progress when there is nothing to claim.
    tell: called with each scene that this process has finished, and its error, "" if there was none.

    Raises `Broken` from `stages`, after recording it, and `NoPlace` if the disk is full or read-only, or the folder of
    results gone; scenes in progress stay open then.
    """
    _Worker(board, claims, stages, rank, peers, tell).run(poll)
