"""What comes out of a video: frames, and how it ended."""

from dataclasses import dataclass

from PIL import Image


class VideoError(ValueError):
    """A file that cannot be used as a video; names the file, the reason and the way out."""


@dataclass(frozen=True)
class VideoFrame:
    """One frame as players show it.

    image: RGB, 8 bits, upright, with square pixels. seconds: since the first frame of the video, by its timestamps.
    index: how many frames were decoded before it, or since the place that `start=` jumped to. name: unique in the
    video and sorted as time is, like the name of a picture file: `clip_00012.345.png`.
    """

    image: Image.Image
    seconds: float
    index: int
    name: str


@dataclass(frozen=True)
class Ending:
    """A video that is not whole.

    seconds: of the last frame that could be decoded. expected: how long the file says it is; None if it does not.
    damaged: packets and frames that were left out or may show garbage. reason: a sentence with all of it.
    """

    seconds: float
    expected: float | None
    damaged: int
    reason: str
