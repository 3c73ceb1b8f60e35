#!/usr/bin/env bash
# PyAV 18.1.0 (FFmpeg 8.1.2, swscale 9.5): packed RGB of 16 bits is wrong where a 4:2:0 frame's width is odd.
#
# `frame.reformat(format="rgb48le")` and "rgba64le" give a frame of 10 bits, 4:2:0 and an odd width other colours in
# all of its pixels: green and red may go to 0. An even width, 4:2:2 and 4:4:4, and 8 bits per colour come out right.
# It happens with the scaler's default (bilinear) and "AREA" wherever the height stays, so where an even width becomes
# an odd one, too, as square pixels of an anamorphic video may need. Whoever tone-maps HDR videos meets that. Ask for
# planes instead: "gbrp16le" is right for all widths, and `to_ndarray` gives it in the same order.
#
# Output seen:
#   width 64 rgb48le  0.394 0.519 0.680
#   width 64 rgba64le 0.394 0.519 0.680
#   width 64 gbrp16le 0.394 0.519 0.680
#   width 61 rgb48le  0.000 0.000 0.680
#   width 61 rgba64le 0.000 0.000 0.680
#   width 61 gbrp16le 0.394 0.519 0.680
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q av==18.1.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import sys

import av
import numpy as np

found = {}
for width in (64, 61):
    frame = av.VideoFrame(width, 48, "yuv420p10le")
    for plane, code in zip(frame.planes, (500, 600, 450)):  # one colour everywhere
        plane.update(np.full(plane.buffer_size // 2, code, np.uint16).tobytes())
    frame.colorspace, frame.color_range = 9, 1  # BT.2020, limited
    for name in ("rgb48le", "rgba64le", "gbrp16le"):
        pixel = frame.reformat(format=name).to_ndarray()[20, 20, :3] / 65535
        found[width, name] = pixel
        print(f"width {width} {name:8}", *(f"{value:.3f}" for value in pixel))
right = found[64, "gbrp16le"]
good = [(64, "rgb48le"), (64, "rgba64le"), (61, "gbrp16le")]
bad = [(61, "rgb48le"), (61, "rgba64le")]
same = {case: np.abs(found[case] - right).max() < 0.01 for case in good + bad}
sys.exit(0 if all(same[case] for case in good) and not any(same[case] for case in bad) else 1)
EOF
