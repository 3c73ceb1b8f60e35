"""Streams of any length: overlapping windows of frames through the network, aligned with one another, in the memory of
one window.

`model.stream(frames)` creates a `Stream`. `frames` defines what a frame may be, `align` aligns windows and measures
drift, `loops` detects places that are seen again, `pose_graph` closes these loops, `state` stores everything on disk.
"""

from vggt_int8.stream.align import Drift
from vggt_int8.stream.frames import Frames
from vggt_int8.stream.report import Loop, Seam, StreamReport
from vggt_int8.stream.stream import OVERLAP, WINDOW, Stream, StreamFrame

__all__ = ["OVERLAP", "WINDOW", "Drift", "Frames", "Loop", "Seam", "Stream", "StreamFrame", "StreamReport"]
