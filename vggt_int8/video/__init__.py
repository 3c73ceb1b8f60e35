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
video is opened.
"""

from vggt_int8.video.frame import Ending, VideoError, VideoFrame
from vggt_int8.video.names import VIDEO_SUFFIXES, is_video
from vggt_int8.video.reader import Video

__all__ = ["VIDEO_SUFFIXES", "Ending", "Video", "VideoError", "VideoFrame", "is_video"]
