"""Scenes without end: windows of frames through the network, laid on one another, in the memory of one window.

`model.stream(frames)` makes a `Stream`. `frames` says what a frame may be, `align` lays windows on one another and
measures drift, `loops` finds places that are seen again, `pose_graph` closes them, `state` keeps it all on the disk.
"""

from vggt_int8.stream.align import Drift
from vggt_int8.stream.frames import Frames
from vggt_int8.stream.report import Loop, Seam, StreamReport
from vggt_int8.stream.stream import OVERLAP, WINDOW, Stream, StreamFrame

__all__ = ["OVERLAP", "WINDOW", "Drift", "Frames", "Loop", "Seam", "Stream", "StreamFrame", "StreamReport"]
