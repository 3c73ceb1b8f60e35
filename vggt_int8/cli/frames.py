"""Frame sources of `run`: pictures, a video, or a growing folder, with the options that select frames."""

import hashlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggt_int8.cli import options
from vggt_int8.cli.loading import find_and_check
from vggt_int8.video.names import is_video
from vggt_int8.video.pick import check_choice

if TYPE_CHECKING:
    from vggt_int8.video import Ending, VideoFrame

DEFAULT_FPS = 2.0
POLL_SECONDS = 0.2
QUIET_SECONDS = 2.0

Fps = Annotated[
    float | None,
    typer.Option(
        help=f"For a video: frames per second of it to use; by default {DEFAULT_FPS:g}, unless --every is given.",
        **options.between(0.001, 1000),
    ),
]
Every = Annotated[int | None, typer.Option(help="For a video: every N-th frame instead.", **options.between(1))]
Start = Annotated[float | None, typer.Option(help="For a video: start at this second.", **options.between(0))]
End = Annotated[float | None, typer.Option(help="For a video: end at this second.", **options.between(0))]
Sharpest = Annotated[
    bool, typer.Option("--sharpest", help="For a video: the sharpest frame of each interval instead of the nearest.")
]
Follow = Annotated[
    float | None,
    typer.Option(
        help="Wait for new images in the folder, until none has arrived for this number of seconds. Needs --window.",
        metavar="SECONDS",
        **options.between(0.1, 1e6),
    ),
]
Window = Annotated[
    int | None,
    typer.Option(
        help="Reconstruct this many frames at a time and align the windows: uses the memory of one window, for any "
        "number of frames. By default all frames are reconstructed at once.",
        **options.between(2),
    ),
]
Overlap = Annotated[
    int | None,
    typer.Option(
        help="Frames shared by consecutive windows; by default a quarter of the window.", **options.between(1)
    ),
]
NoLoops = Annotated[bool, typer.Option("--no-loops", help="Disable loop closure.")]


@dataclass(frozen=True)
class Pictures:
    """A fixed list of image files."""

    paths: list[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def frames(self, skip: int) -> Iterator[Path]:
        yield from self.paths[skip:]

    def settings(self) -> dict[str, Any]:
        """A line that identifies these pictures, by names and sizes: contents would take as long as reading them."""
        sizes = "\0".join(f"{path}\0{path.stat().st_size}" for path in self.paths)
        digest = hashlib.sha256(sizes.encode("utf-8", "surrogateescape")).hexdigest()
        return {"frames": f"{len(self.paths)} files, {digest[:16]}"}

    def report(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Clip:
    """A video and its selected frames. endings: where and why the video ended early, available after reading."""

    path: Path
    fps: float | None
    every: int | None
    start: float | None
    end: float | None
    sharpest: bool
    endings: "list[Ending]" = field(default_factory=list, compare=False)

    def frames(self, skip: int) -> "Iterator[VideoFrame]":
        from vggt_int8.video import Video

        with Video(self.path) as video:
            yield from video.frames(**self._choice(), skip=skip)
            self.endings[:] = [] if video.ending is None else [video.ending]

    def settings(self) -> dict[str, Any]:
        from vggt_int8.export.repeat import identify_file

        return {"video": str(self.path), **identify_file(self.path), **self._choice()}

    def report(self) -> dict[str, Any]:
        """For report.json: file, digest, selected frames, and why the video ended early, if it did."""
        early = [{"ending": ending.reason, "ending_seconds": ending.seconds} for ending in self.endings]
        return {"video": {**self.settings(), **(early[0] if early else {})}}

    def _choice(self) -> dict[str, Any]:
        names = ("fps", "every", "start", "end", "sharpest")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Growing:
    """A folder to which pictures are added; available pictures are taken in natural order. A picture is complete when
    its size has not changed between two checks, or for `QUIET_SECONDS` if it has no end mark, since the writer may
    pause. The input ends when no new picture has appeared for `patience` seconds.

    known: names of files that an earlier run has already read.
    """

    folder: Path
    patience: float
    known: frozenset[str] = frozenset()

    def frames(self, skip: int) -> Iterator[Path]:
        from vggt_int8.images import image_suffixes
        from vggt_int8.images.names import natural_key

        taken, seen, suffixes = set(self.known), dict[Path, tuple[int, float]](), image_suffixes()
        last, on_its_way = time.monotonic(), True
        while on_its_way or time.monotonic() - last < self.patience:
            now = time.monotonic()
            found = {
                path: size
                for path in self.folder.iterdir()
                if path.suffix.lower() in suffixes and not path.name.startswith(".") and str(path) not in taken
                if (size := _size(path))
            }
            # Size, and the time of its last change.
            before, seen = (
                seen,
                {p: seen[p] if seen.get(p, (0,))[0] == size else (size, now) for p, size in found.items()},
            )
            still = [path for path in seen if before.get(path) == seen[path]]
            whole = [path for path in still if ends_as_it_should(path) or now - seen[path][1] >= QUIET_SECONDS]
            for path in sorted(whole, key=natural_key):
                taken.add(str(path))
                yield path
                last = time.monotonic()  # whoever takes them may have been busy for longer than `patience`
            on_its_way = len(whole) < len(found)
            time.sleep(POLL_SECONDS)

    def settings(self) -> dict[str, Any]:
        return {"follows": str(self.folder)}

    def report(self) -> dict[str, Any]:
        return self.settings()


def _size(path: Path) -> int:
    """Size in bytes; 0 for a file that no longer exists, and for what is no file, such as a folder or a pipe."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def ends_as_it_should(path: Path) -> bool:
    """Whether a file is a JPEG or PNG and ends with its end mark. False proves nothing: cameras may append data, and
    other formats have no such mark. False for a file that no longer exists, too.
    """
    mark = {".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9", ".png": b"IEND\xaeB`\x82"}.get(path.suffix.lower())
    if mark is None:
        return False
    try:
        with path.open("rb") as file:
            file.seek(-min(len(mark), file.seek(0, os.SEEK_END)), os.SEEK_END)
            return file.read() == mark
    except FileNotFoundError:
        return False


Input = Pictures | Clip | Growing


def find_input(
    images: list[str],
    *,
    max_megapixels: float | None,
    fps: float | None,
    every: int | None,
    start: float | None,
    end: float | None,
    sharpest: bool,
    follow: float | None,
    window: int | None,
) -> Input:
    """Find the input of the arguments and make the checks that are cheap. Raises ValueError for contradictory
    arguments.
    """
    videos = [image for image in images if is_video(image)]
    if videos:
        if len(images) > 1:
            raise ValueError(f"{videos[0]} is a video: give one video alone, or pictures; got {len(images)} arguments")
        if follow is not None:
            raise ValueError("--follow waits for pictures in a folder, and the input is a video")
        fps = DEFAULT_FPS if fps is None and every is None else fps
        check_choice(fps, every, start, end, sharpest)
        clip = Clip(Path(videos[0]).expanduser(), fps, every, start, end, sharpest)
        from vggt_int8.video import Video

        Video(clip.path).close()  # raises what opening it raises, before a model is loaded
        return clip
    of_video = {"fps": fps, "every": every, "start": start, "end": end, "sharpest": sharpest or None}
    if given := [name for name, value in of_video.items() if value is not None]:
        raise ValueError(f"--{given[0]} is for a video, and {images[0]} is none")
    if follow is None:
        return Pictures(find_and_check(images, max_megapixels))
    folder = Path(images[0]).expanduser()
    if window is None:
        raise ValueError("--follow reconstructs images as they arrive: give --window, too")
    if len(images) > 1 or not folder.is_dir():
        raise ValueError(f"--follow waits for pictures in one folder; got {', '.join(images)}")
    return Growing(folder, follow)
