#!/usr/bin/env bash
# PyAV 18.1.0 (FFmpeg 8): reading a transport stream in which another stream begins midway ends with IndexError.
#
# Recordings of broadcasts, and files joined by `cat`, may have sound from the middle on. If that lies behind what FFmpeg
# probes when it opens the file (5 MB) and before the last 250 KB, the container has one stream when it is opened and two
# when it is read. `demux` (and `decode`) yield all packets of the chosen stream, and then, instead of ending, look up the
# new stream in a list made before it was there. A program that takes any exception for a damaged file loses the
# recording. Way around: take IndexError at the end of `demux` for the end.
#
# Output seen:
#   streams at first 1, later 2, packets of 16 frames: 16, then IndexError: list index out of range
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q av==18.1.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

random = np.random.default_rng(0)


def part(first, frames, sound):
    """A transport stream of noise, 600 KB a frame."""
    with av.open("part.ts", "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 640, 480, "yuv420p"
        video.options = {"g": "1", "qp": "1", "preset": "ultrafast"}
        audio = container.add_stream("mp2", rate=44100) if sound else None
        for number in range(first, first + frames):
            frame = av.VideoFrame.from_ndarray(random.integers(0, 256, (480, 640, 3), dtype=np.uint8))
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        for number in range(10 if sound else 0):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 44100, 1152 * number
            container.mux(audio.encode(frame))
        if sound:
            container.mux(audio.encode())
    return Path("part.ts").read_bytes()


Path("joined.ts").write_bytes(part(0, 12, False) + part(12, 2, True) + part(14, 2, False))
packets, ended = 0, "the end"
with av.open("joined.ts") as container:
    streams = len(container.streams)
    try:
        for packet in container.demux(video=0):
            packets += packet.size > 0
    except IndexError as error:
        ended = f"IndexError: {error}"
with av.open("joined.ts", options={"probesize": "100000000"}) as container:
    later = len(container.streams)
print(f"streams at first {streams}, later {later}, packets of 16 frames: {packets}, then {ended}")
sys.exit(0 if (streams, later, packets) == (1, 2, 16) and ended.startswith("IndexError") else 1)
EOF
