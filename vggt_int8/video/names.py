"""Which files count as videos: by suffix alone, so that asking opens nothing."""

from os import PathLike
from pathlib import Path

VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("3g2", "3gp", "264", "265", "asf", "avi", "flv", "h264", "h265", "hevc", "insv", "ivf", "m2ts", "m4v"),
        *("mkv", "mov", "mp4", "mpeg", "mpg", "mts", "mxf", "ogv", "ts", "webm", "wmv"),
    )
)


def is_video(path: str | PathLike[str]) -> bool:
    """Whether a file's name ends as those of videos do."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES
