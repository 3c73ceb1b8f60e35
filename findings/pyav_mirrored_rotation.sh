#!/usr/bin/env bash
# PyAV 18.1.0 (FFmpeg 8): the rotation of a frame does not tell a mirrored video from a turned one.
#
# `VideoFrame.rotation` is one angle. A video mirrored left to right, as front cameras write it, has the rotation of one
# that is turned by 180 degrees, and one that is turned by 90 and mirrored that of one turned alone. Whoever turns frames
# by that angle shows front-camera videos upside down. The display matrix (side data DISPLAYMATRIX, nine 32-bit integers)
# tells them apart: a pixel (x, y) is shown at (a x + c y, b x + d y).
#
# Output seen:
#   turned by 180          rotation -180  matrix a, b, c, d = -1, 0, 0, -1
#   mirrored               rotation -180  matrix a, b, c, d = -1, 0, 0, 1
#   turned by 90           rotation 90    matrix a, b, c, d = 0, -1, 1, 0
#   turned by 90, mirrored rotation 90    matrix a, b, c, d = 0, -1, -1, 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q av==18.1.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import struct
import sys

import av
import numpy as np

found = {}
cases = {
    "turned by 180": (180, False), "mirrored": (0, True), "turned by 90": (90, False), "turned by 90, mirrored": (90, True)
}
for name, (degrees, mirrored) in cases.items():
    with av.open("clip.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.set_display_rotation(degrees, hflip=mirrored)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8))))
        container.mux(stream.encode())
    with av.open("clip.mp4") as container:
        frame = next(container.decode(video=0))
    data = next(bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX")
    a, b, _, c, d = [round(value / 65536) for value in struct.unpack("<9i", data)[:5]]
    found[name] = (frame.rotation, (a, b, c, d))
    print(f"{name:22} rotation {frame.rotation:<5} matrix a, b, c, d = {a}, {b}, {c}, {d}")
same = found["turned by 180"][0] == found["mirrored"][0] and found["turned by 90"][0] == found["turned by 90, mirrored"][0]
apart = len({matrix for _, matrix in found.values()}) == 4
sys.exit(0 if same and apart else 1)
EOF
