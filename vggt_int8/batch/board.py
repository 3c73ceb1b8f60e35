"""`Board`: the state of a batch as files in its folder of results, which any number of processes read and write.

OUT/SCENE/report.json         a finished scene: the folder appears as a whole, or not at all
OUT/.batch/settings.json      what is done to each scene; processes with other settings are refused
OUT/.batch/claims/KEY.claim   the process at work; for a finished scene, a remnant of a kill, which is ignored
OUT/.batch/failures/KEY.json  failed attempts, and the state of the images they failed on
OUT/.batch/suspects/KEY.json  scenes that a process held when it died, which are retried one at a time
"""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vggt_int8.batch.scenes import SceneFolder
from vggt_int8.files import staging_folder, sweep, write_json
from vggt_int8.plain_data import first_difference, shown

STATE, REPORT = ".batch", "report.json"
Status = Literal["done", "failed", "open"]


class NoPlace(RuntimeError):
    """Results cannot be written: not a scene's fault, and computing the next one would be in vain."""


@dataclass(frozen=True)
class SceneState:
    """attempts: failed attempts on the current images."""

    status: Status
    attempts: list[dict[str, Any]] = field(default_factory=list)


class Board:
    """The board of one folder of results, for the scenes that are to be in it. retries: attempts after the first failed
    one.
    """

    def __init__(self, out: Path, scenes: Sequence[SceneFolder], retries: int = 1) -> None:
        self.out, self.scenes, self.retries = out, list(scenes), retries
        self.state = out / STATE
        self.claims_folder = self.state / "claims"
        self._by_name = {scene.name: scene for scene in scenes}
        self._done: set[str] = set()
        self._failed: set[str] = set()  # keys of scenes with attempts that failed

    def open(self, settings: dict[str, Any]) -> None:
        """Create the folders, and agree with other processes on what is done to each scene.

        Raises FileExistsError if `out` has results of other settings, naming them, or is not a folder of `batch`.
        """
        path = self.state / "settings.json"
        # Another process may begin at this moment: its `.batch` is no foreign file.
        if self.out.is_dir() and not self.state.is_dir() and any(path.name != STATE for path in self.out.iterdir()):
            raise FileExistsError(f"output folder {self.out} is not empty and not one of `batch`: choose another one")
        for folder in (self.state, self.claims_folder, self.state / "failures", self.state / "suspects"):
            folder.mkdir(parents=True, exist_ok=True)
        plain = json.loads(json.dumps(settings))
        sweep(path)  # what a kill has left beside it
        if not path.exists():
            _write_first(path, plain)
        there = self._read(path)
        if there != plain:
            raise FileExistsError(
                f"output folder {self.out} has results of other settings ({first_difference(there, plain)}): choose "
                "another one, or give the same"
            )
        self._sweep_done()

    def _sweep_done(self) -> None:
        """Remove what kills have left beside finished scenes, since nobody writes those again. What lies beside others
        may be at work on a machine whose locks are not seen here.
        """
        self.refresh()
        if any(self.out.glob(".*.partial-*")):
            for name in sorted(self._done):
                sweep(self.out / name)

    def check_place(self) -> None:
        """Raise `NoPlace` if the folder of results is gone. A writer would make it anew, where nobody looks for it."""
        if not self.state.is_dir():
            raise NoPlace(
                f"{self.out} is not there any more: was it moved, or a disk unmounted? With it in its place again, the "
                "same command continues"
            )

    def forget_settings(self) -> None:
        """After input that no scene can have: accept other settings, if there is nothing yet of these."""
        self.refresh()
        if not self._done and not self._failed:
            (self.state / "settings.json").unlink(missing_ok=True)

    def refresh(self) -> None:
        """Update the list of scenes that others have finished. Raises `NoPlace` as `check_place`."""
        self.check_place()
        with os.scandir(self.out) as entries:
            new = [entry.name for entry in entries if entry.name in self._by_name and entry.name not in self._done]
        self._done.update(name for name in new if (self.out / name / REPORT).is_file())
        self._failed = {path.stem for path in (self.state / "failures").glob("*.json")}

    def is_done(self, scene: SceneFolder) -> bool:
        """Whether its results exist now."""
        if scene.name not in self._done and (self.out / scene.name / REPORT).is_file():
            self._done.add(scene.name)
        return scene.name in self._done

    def status(self, scene: SceneFolder) -> SceneState:
        """As of the last `refresh`."""
        if scene.name in self._done:
            return SceneState("done")
        attempts = self.attempts(scene) if scene.key in self._failed else []
        final = any(attempt["final"] for attempt in attempts) or len(attempts) > self.retries
        return SceneState("failed" if final else "open", attempts)

    def unfinished(self) -> list[SceneFolder]:
        """Scenes that are neither done nor given up."""
        self.refresh()
        return [scene for scene in self.scenes if scene.name not in self._done and self.status(scene).status == "open"]

    def progress(self) -> int:
        """Increases whenever a scene is done, or an attempt has failed."""
        self.refresh()
        return len(self._done) + sum(len(self.attempts(scene)) for scene in self.scenes if scene.key in self._failed)

    def attempts(self, scene: SceneFolder) -> list[dict[str, Any]]:
        """Failed attempts; none if the scene's images have changed since."""
        path = self._failures(scene)
        if not path.exists():
            return []
        found = self._read(path)
        return found["attempts"] if found.get("fingerprint") == scene.fingerprint() else []

    def add_failure(self, scene: SceneFolder, error: str, *, final: bool, stage: str) -> None:
        """Called by the holder of the scene's claim. final: another attempt would fail in the same way.

        Raises `NoPlace` as `check_place`.
        """
        self.check_place()
        attempt = {"time": time.time(), "stage": stage, "error": error, "final": final}
        attempts = [*self.attempts(scene), attempt]
        write_json(self._failures(scene), {"fingerprint": scene.fingerprint(), "attempts": attempts})

    def forget_failures(self) -> None:
        """Retry scenes that were given up."""
        for path in (self.state / "failures").glob("*.json"):
            path.unlink(missing_ok=True)

    def suspect(self, key: str) -> None:
        """Record that a process died while it held this scene, among others. Raises `NoPlace` as `check_place`."""
        self.check_place()
        write_json(self.state / "suspects" / f"{key}.json", {"time": time.time()})

    def acquit(self, scene: SceneFolder) -> None:
        (self.state / "suspects" / f"{scene.key}.json").unlink(missing_ok=True)

    def suspects(self) -> set[str]:
        """Keys of scenes that are to be retried alone."""
        return {path.stem for path in (self.state / "suspects").glob("*.json")}

    def scene_of(self, key: str) -> SceneFolder | None:
        return next((scene for scene in self.scenes if scene.key == key), None)

    def _failures(self, scene: SceneFolder) -> Path:
        return self.state / "failures" / f"{scene.key}.json"

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is no JSON file ({error}): remove it, and `batch` begins anew there") from error
        if not isinstance(found, dict):
            raise ValueError(f"{path} holds {shown(found)}, not what `batch` writes: remove it")
        return found


def _write_first(path: Path, document: dict[str, Any]) -> None:
    """Write a file unless another process has written it first."""
    with staging_folder(path) as staging:
        new = staging / path.name
        write_json(new, document)
        try:
            os.link(new, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without links: the last of them stays, and all read it
            new.replace(path)
