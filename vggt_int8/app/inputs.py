"""What a visitor handed over -> image files that can be read: images in natural order, or frames of one video."""

import os
from collections.abc import Sequence
from pathlib import Path

from vggt_int8.images import check_images
from vggt_int8.images.names import natural_key
from vggt_int8.video import Video, is_video

DEFAULT_SECONDS = 10.0  # a video's length where its file does not say it


def image_files(files: Sequence[Path], folder: Path, most: int) -> list[Path]:
    """Images to reconstruct, at most `most`, in `folder`: links to the files, or frames spread over a video's length.

    Raises ValueError, in words for a visitor, for nothing, for several videos or a video among images, for too many
    images, and for files that are no images.
    """
    videos = [file for file in files if is_video(file)]
    if not files:
        raise ValueError("no images yet: add some, or one video")
    if videos and len(files) > 1:
        raise ValueError(f"{len(videos)} of {len(files)} files are videos: give images, or one video alone")
    if videos:
        return video_frames(videos[0], folder, most)
    if len(files) > most:
        raise ValueError(f"{len(files)} images are more than the {most} that this page takes: choose some of them")
    images = gathered(files, folder)
    check_images(images)
    return images


def gathered(files: Sequence[Path], folder: Path) -> list[Path]:
    """Files that each came in a folder of their own, under their names in one, in natural order."""
    folder.mkdir(exist_ok=True)
    found: list[Path] = []
    for file in sorted(files, key=lambda file: natural_key(Path(file.name))):
        name = file.name
        while (folder / name).exists():  # of another folder of the visitor's
            name = f"{len(found)}_{name}"
        os.link(file, folder / name)
        found.append(folder / name)
    return found


def video_frames(path: Path, folder: Path, most: int) -> list[Path]:
    """At most `most` frames of a video, the sharpest of each of as many equal intervals, as PNG files in `folder`."""
    folder.mkdir(exist_ok=True)
    written: list[Path] = []
    with Video(path) as video:
        seconds = video.duration or DEFAULT_SECONDS
        for frame in video.frames(fps=most / seconds, sharpest=True):
            written.append(folder / f"{len(written):04d}_{frame.seconds:.3f}s.png")
            frame.image.save(written[-1])
            if len(written) == most:
                break
    return written
