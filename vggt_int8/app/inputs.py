"""Convert uploads to readable image files: images in natural order, or frames of one video."""

import os
from collections.abc import Sequence
from pathlib import Path

from vggt_int8.images import check_images
from vggt_int8.images.names import natural_key
from vggt_int8.video import Video, is_video

DEFAULT_SECONDS = 10.0  # a video's length where its file does not say it


def image_files(files: Sequence[Path], folder: Path, most: int) -> list[Path]:
    """At most `most` images to reconstruct, in `folder`: links to the uploads, or frames spread over a video's length.

    Raises ValueError, with a message for the user, for no files, several videos, a video among images, too many images,
    and files that are not images.
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
    """Put files that are each in their own folder into one folder under their names, in natural order."""
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
    """At most `most` frames of a video as PNG files in `folder`: the sharpest frame of each of as many equal
    intervals.
    """
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
