"""Video files -> upright RGB frames with their times, one after another, in the memory of a few frames.

```python
with Video("clip.mp4") as video:
    for frame in video.frames(fps=2):
        frame.image, frame.seconds     # a PIL image as players show it; seconds since the video's first frame
    print(video.ending)                # None, or where and why it ended early
```
Times come from the file's timestamps, never from counting frames, so that a variable frame rate is as exact as any
other. Which frames are taken is `pick`, how one is turned `orientation`, how colours come out `color`.

PyAV, which decodes, is the extra `video`; `reader` and `color` are the only files that touch it, and only when a
video is opened. What needs neither Pillow nor NumPy does not import them: the rest is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from vggt_int8.video.names import VIDEO_SUFFIXES, is_video

if TYPE_CHECKING:
    from vggt_int8.video.frame import Ending, VideoError, VideoFrame
    from vggt_int8.video.reader import Video

_HOMES = {"Ending": "frame", "VideoError": "frame", "VideoFrame": "frame", "Video": "reader"}

__all__ = ["VIDEO_SUFFIXES", "Ending", "Video", "VideoError", "VideoFrame", "is_video"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"vggt_int8.video.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
