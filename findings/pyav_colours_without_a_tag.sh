#!/usr/bin/env bash
# PyAV 18.1.0 (FFmpeg 8): frames of high definition that name no colour matrix come out in wrong colours.
#
# `VideoFrame.to_image` and `to_ndarray("rgb24")` honour a colour matrix that the file names. Where it names none, as many
# cameras and programs do, they take BT.601, whatever the size. Players take BT.709 from 720 rows on, which is what HD
# is made with: a colour is off by up to some 13 of 255. Give `src_colorspace="ITU709"` for such frames.
#
# Output seen:
#   (200, 60, 30) in BT.709, 1280 x 720, untagged: by default (187, 45, 32), with ITU709 (199, 58, 29), tagged (199, 58, 29)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q av==18.1.0 numpy==2.4.6 pillow==13.0.0
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import sys

import av
import numpy as np

WANTED = (200, 60, 30)
red, green, blue = (value / 255 for value in WANTED)
luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
codes = (16 + 219 * luma, 128 + 224 * (blue - luma) / (2 * (1 - 0.0722)), 128 + 224 * (red - luma) / (2 * (1 - 0.2126)))


def decoded(matrix):
    with av.open("clip.mkv", "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 1
        frame = av.VideoFrame(1280, 720, "yuv420p")
        for plane, code in zip(frame.planes, codes, strict=True):
            plane.update(np.full(plane.buffer_size, round(code), np.uint8).tobytes())
        frame.colorspace, frame.color_range, frame.pts = matrix, 1, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open("clip.mkv") as container:
        return next(container.decode(video=0))


untagged, tagged = decoded(2), decoded(1)
by_default, by_709, named = (
    image.getpixel((100, 100))
    for image in (untagged.to_image(), untagged.to_image(src_colorspace="ITU709"), tagged.to_image())
)
print(f"{WANTED} in BT.709, 1280 x 720, untagged: by default {by_default}, with ITU709 {by_709}, tagged {named}")
off = [max(abs(a - b) for a, b in zip(color, WANTED, strict=True)) for color in (by_default, by_709, named)]
sys.exit(0 if off[0] > 8 and max(off[1:]) <= 3 else 1)
EOF
