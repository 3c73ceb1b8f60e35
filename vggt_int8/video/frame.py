"""The results of reading a video: frames, and how it ended."""

from dataclasses import dataclass

from PIL import Image


class VideoError(ValueError):
    """A file that cannot be used as a video; names the file, the reason and what to do."""


@dataclass(frozen=True)
class VideoFrame:
    """One frame as players show it.

    image: RGB, 8 bits, upright, with square pixels.
    seconds: since the first frame of the video, by its timestamps.
    index: number of frames decoded before it, or since the position that `start=` jumped to.
    name: unique in the video and in order of time, like an image file's name: `clip_00012.345.png`.
    """

    image: Image.Image
    seconds: float
    index: int
    name: str


@dataclass(frozen=True)
class Ending:
    """A video that is not complete.

    seconds: of the last frame that could be decoded.
    expected: the duration that the file states; None if it does not.
    damaged: number of packets and frames that were left out or may show garbage.
    reason: a sentence with all of it.
    """

    seconds: float
    expected: float | None
    damaged: int
    reason: str
