"""Read all frames of a finite input in threads while the model is loaded."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vggt_int8.cli import console
from vggt_int8.cli.frames import Input, Pictures
from vggt_int8.cli.loading import InputSize, in_pixels

if TYPE_CHECKING:
    from torch import Tensor

    from vggt_int8.images import ImageTransform
    from vggt_int8.images import Mode as FitMode
    from vggt_int8.stream.frames import Frame

_HASHING = 2  # threads: files come from the system's memory, for whoever decodes them has just read them


@dataclass(frozen=True)
class Read:
    """Frames at the network's input size. inputs: what report.json lists for each frame."""

    pixels: "Tensor"
    transforms: "list[ImageTransform]"
    names: list[str]
    files: list[Path | None]
    inputs: list[dict[str, Any]]


@dataclass(frozen=True)
class How:
    """Options for reading pictures."""

    mode: str
    max_megapixels: float | None
    fast_jpeg: bool


Progress = Callable[[int, int], None]
Finish = Callable[[Progress], Read]


@contextmanager
def reading(source: Input, how: How, expected: InputSize | None) -> Iterator[Callable[[Any], Read]]:
    """Start reading before the model is loaded. The block receives a function of the network that waits for the
    remaining frames.

    expected: the model's input size; if it is None, reading starts when the network is available.
    """
    with ExitStack() as begun:
        early = None if expected is None else begun.enter_context(_begin(source, how, expected))

        def finish(network: Any) -> Read:
            size = InputSize(network.config.img_size, network.config.patch_size)
            pictures = len(source) if isinstance(source, Pictures) else 0
            what = console.count_images(pictures) if pictures else "frames of the video"
            if early is not None and size == expected:
                # Some or all pictures were read before this step, so pictures per second would be meaningless.
                with console.step(f"Reading the rest of {what}") as progress:
                    return early(progress)
            rest = begun.enter_context(_begin(source, how, size))
            with console.step(f"Reading {what}", images=pictures) as progress:
                return rest(progress)

        yield finish


def read_now(source: Input, how: How, size: InputSize) -> Read:
    """Read everything immediately, without output."""
    with _begin(source, how, size) as finish:
        return finish(lambda done, total: None)


def _begin(source: Input, how: How, size: InputSize) -> AbstractContextManager[Finish]:
    return _pictures(source, how, size) if isinstance(source, Pictures) else _frames(source, how, size)


@contextmanager
def _pictures(source: Pictures, how: How, size: InputSize) -> Iterator[Finish]:
    from vggt_int8.ahead import begun
    from vggt_int8.export.repeat import identify_file
    from vggt_int8.export.report import describe_inputs
    from vggt_int8.images import reading

    paths = source.paths
    fit: dict[str, Any] = {**size._asdict(), "max_pixels": in_pixels(how.max_megapixels), "fast_jpeg": how.fast_jpeg}
    mode = cast("FitMode", how.mode)  # an unknown one raises ValueError there
    with (
        reading(paths, mode, **fit) as pixels_of,
        begun(identify_file, paths, workers=_HASHING, results=len(paths)) as digests,
    ):

        def finish(progress: Progress) -> Read:
            pixels, transforms = pixels_of(progress)
            described = zip(describe_inputs(paths, transforms), digests, strict=True)
            inputs = [{**entry, **digest} for entry, digest in described]  # later one of them may be gone
            files: list[Path | None] = [path.absolute() for path in paths]
            return Read(pixels, transforms, [str(path) for path in paths], files, inputs)

        yield finish


@contextmanager
def _frames(source: Input, how: How, size: InputSize) -> Iterator[Finish]:
    from vggt_int8.stream.frames import Source

    mode = cast("FitMode", how.mode)
    with Source(source.frames, mode=mode, **size._asdict(), room=sys.maxsize).begun() as frames:

        def finish(progress: Progress) -> Read:
            read: list[Frame] = []
            for frame in frames:
                read.append(frame)
                progress(len(read), len(read))
            return _of_frames(read)

        yield finish


def _of_frames(frames: "list[Frame]") -> Read:
    import torch

    from vggt_int8.export.report import describe_inputs

    transforms, names = [frame.transform for frame in frames], [frame.name for frame in frames]
    entries = describe_inputs([Path(name) for name in names], transforms)
    inputs = [{**entry, "seconds": frame.seconds} for entry, frame in zip(entries, frames, strict=True)]
    pixels = torch.stack([frame.pixels for frame in frames])
    return Read(pixels, transforms, names, [None] * len(frames), inputs)
