"""A stream on disk: its windows, each complete or absent, and what is needed to resume after the last of them.

FOLDER/stream.json              identity and settings of the stream, and whether it has ended
FOLDER/windows/00000/           a window, which is complete or absent:
    scene/                      a saved `Scene`, in the window's own world, with all of its frames
    descriptors.npy             fp32 [frames, C], if loops are detected
    window.json                 which frames it has, and its alignment with the window before
    loop.json                   written afterwards: the loop that it closes, or that it closes none
"""

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vggt_int8.files import staged_folder, sweep, write_json
from vggt_int8.plain_data import first_difference, shown
from vggt_int8.scene import Scene, load_scene, save_scene
from vggt_int8.similarity import Similarity
from vggt_int8.stream.align import Drift

STATE, WINDOW, DESCRIPTORS, LOOP = "stream.json", "window.json", "descriptors.npy", "loop.json"
FORMAT_VERSION = 1
PROGRAM = "vggt-int8 stream"


@dataclass(frozen=True)
class Window:
    """One call of the network.

    first: the index of its first frame.
    frames: the number of its frames.
    new: how many of them, the last ones, were in no window before.
    onto: the measured similarity from its own world to that of the window before; None for the first window.
    drift: measured likewise.
    times: of each frame in seconds, or None.
    descriptors: [frames, C] on the CPU, fp32, or None.
    """

    first: int
    frames: int
    new: int
    onto: Similarity | None
    drift: Drift | None
    times: tuple[float | None, ...]
    descriptors: Tensor | None = None

    @property
    def end(self) -> int:
        return self.first + self.frames


class StreamFolder:
    """The folder of one stream, created if it is missing.

    settings: what determines the results; a folder that has windows with other settings is refused.

    Raises ValueError for that and for a corrupted folder, and FileExistsError for a folder that holds something else.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.settings = folder.expanduser(), json.loads(json.dumps(settings, default=str))
        self.windows: list[Window] = []
        self.complete, self.identity = False, uuid.uuid4().hex
        if self.folder.is_dir():
            sweep(self.folder / STATE)  # of a kill while it was written first
        if (self.folder / STATE).is_file():
            self._read()
        elif self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise FileExistsError(f"{self.folder} is no folder of a stream ({STATE} is missing): choose another one")
        else:
            self._write()

    def scene(self, number: int) -> Scene:
        """A window in its own world; its maps stay on disk."""
        return load_scene(self._place(number))

    def add(self, window: Window, scene: Scene) -> None:
        """Write the next window. Raises FileExistsError if another process has written it."""
        place = self._place(len(self.windows))
        place.parent.mkdir(exist_ok=True)
        if (place / WINDOW).is_file():
            raise FileExistsError(
                f"{place} is there already: another process works on the same stream; let it finish, or choose another "
                "folder"
            )
        with staged_folder(place, entries=("scene", DESCRIPTORS, WINDOW), overwrite=None) as staged:
            save_scene(staged / "scene", scene)
            if window.descriptors is not None:
                np.save(staged / DESCRIPTORS, window.descriptors.numpy())
            write_json(staged / WINDOW, _document(window))
        self.windows.append(window)

    def loop(self, number: int) -> dict[str, Any] | None:
        """The result of loop detection for this window; None if it has not run."""
        path = self._place(number) / LOOP
        if not path.is_file():
            return None
        with _naming(path, self.folder):
            return _json(path)

    def add_loop(self, number: int, found: Mapping[str, Any]) -> None:
        write_json(self._place(number) / LOOP, dict(found))

    def finish(self) -> None:
        """Mark the stream as ended."""
        self.complete = True
        self._write()

    def _place(self, number: int) -> Path:
        return self.folder / "windows" / f"{number:05d}"

    def _write(self) -> None:
        document = {"format_version": FORMAT_VERSION, "program": PROGRAM, "identity": self.identity}
        write_json(self.folder / STATE, {**document, "complete": self.complete, "settings": self.settings})

    def _read(self) -> None:
        path = self.folder / STATE
        with _naming(path, self.folder):
            document = _json(path)
            version = document["format_version"]
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{path} has format version {shown(version)}, this program reads {FORMAT_VERSION}: go on with the "
                f"version that wrote it, or remove {self.folder} to begin anew"
            )
        with _naming(path, self.folder):
            settings = dict(document["settings"])
            self.complete, self.identity = bool(document["complete"]), str(document["identity"])
        if not (self._place(0) / WINDOW).is_file():  # an earlier run failed in its first window, maybe by its settings
            self._write()
            return
        if settings != self.settings:
            raise ValueError(
                f"{self.folder} holds windows of a stream with other settings "
                f"({first_difference(settings, self.settings)}): give the same to go on with it, or remove that folder "
                "to begin anew"
            )
        for number in count():
            window = self._place(number) / WINDOW
            if not window.is_file():
                break
            with _naming(window, self.folder):
                self.windows.append(_window(_json(window), window.with_name(DESCRIPTORS)))


def similarity_document(similarity: Similarity) -> dict[str, Any]:
    rotation, translation = similarity.rotation.tolist(), similarity.translation.tolist()
    return {"scale": similarity.scale, "rotation": rotation, "translation": translation}


def read_similarity(document: Mapping[str, Any]) -> Similarity:
    rotation = torch.tensor(document["rotation"], dtype=torch.float64).view(3, 3)
    translation = torch.tensor(document["translation"], dtype=torch.float64).view(3)
    return Similarity(float(document["scale"]), rotation, translation)


@contextmanager
def _naming(path: Path, folder: Path) -> Iterator[None]:
    """Turn errors in a file's content into ValueError with the file's name and advice."""
    try:
        yield
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}): to begin anew remove {folder}"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(document, dict):
        raise TypeError(f"an object was expected, not {shown(document)}")
    return document


def _document(window: Window) -> dict[str, Any]:
    onto, drift = window.onto, window.drift
    return {
        "first": window.first,
        "frames": window.frames,
        "new": window.new,
        "times": list(window.times),
        "onto": onto and similarity_document(onto),
        "drift": drift and vars(drift),
    }


def _window(entry: Mapping[str, Any], descriptors: Path) -> Window:
    onto, drift = entry["onto"], entry["drift"]
    return Window(
        first=int(entry["first"]),
        frames=int(entry["frames"]),
        new=int(entry["new"]),
        onto=onto and read_similarity(onto),
        drift=drift and Drift(**drift),
        times=tuple(entry["times"]),
        descriptors=torch.from_numpy(np.load(descriptors)) if descriptors.is_file() else None,
    )


def identity_of(folder: Path) -> str | None:
    """Identity of the stream in a folder; None if there is none, or it cannot be read."""
    try:
        found = _json(folder / STATE).get("identity")
    except (OSError, ValueError, TypeError, RecursionError):  # who goes on with it says what is wrong
        return None
    return found if isinstance(found, str) else None


def remove_stream(folder: Path) -> None:
    """Remove a stream's folder. Its identity is removed last, so that a kill leaves nothing unidentifiable."""
    windows = folder / "windows"
    if windows.is_dir():
        shutil.rmtree(windows)
    (folder / STATE).unlink(missing_ok=True)
    shutil.rmtree(folder)


def finished_names(folder: Path) -> list[str]:
    """Names of the frames in all windows of a stream's folder, without duplicates; none without a stream."""
    names: list[str] = []
    for path in sorted(folder.expanduser().glob(f"windows/*/{WINDOW}")):
        with _naming(path, folder):
            new = int(_json(path)["new"])
        names += load_scene(path.parent).names[-new:]
    return names
