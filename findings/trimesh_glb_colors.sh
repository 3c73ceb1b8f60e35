#!/bin/sh
# trimesh 5.2.0: vertex colours of a GLB that are stored as normalized 16-bit integers, one of the three ways that glTF
# 2.0 allows, lose their upper byte without a warning: linear light 0.5, stored as 32768, is read as 0, and 255 of 65535,
# nearly black, as white. Colours as floats or as 8-bit integers are read right. Who meets it: whoever writes point
# clouds in 16 bits because 8 bits of linear light, which glTF wants, are too few in the dark, and opens or converts them
# with trimesh. The way out is to write floats.
#
# Output seen:
#   stored 0.000 0.004 0.500 1.000
#   floats 0.000 0.004 0.502 1.000
#   16 bit 0.000 1.000 0.000 1.000
#   8 bit  0.000 0.004 0.502 1.000
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --disable-pip-version-check trimesh==5.2.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import io
import json
import struct
import sys

import numpy as np
import trimesh


def glb(colors: np.ndarray, component: int) -> bytes:
    """A GLB of points with colours [N, 4], valid by the specification: aligned views, bounds, normalized integers."""
    points = np.arange(len(colors) * 3, dtype="<f4").reshape(-1, 3)
    content = [points.tobytes(), colors.tobytes()]
    document = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "COLOR_0": 1}, "mode": 0}]}],
        "buffers": [{"byteLength": sum(map(len, content))}],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": len(content[0])},
            {"buffer": 0, "byteOffset": len(content[0]), "byteLength": len(content[1])},
        ],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": len(points), "type": "VEC3",
             "min": points.min(0).tolist(), "max": points.max(0).tolist()},
            {"bufferView": 1, "componentType": component, "count": len(points), "type": "VEC4",
             "normalized": component != 5126},
        ],
    }
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    binary = b"".join(content)
    head = struct.pack("<4s2I", b"glTF", 2, 12 + 8 + len(text) + 8 + len(binary))
    return head + struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary


stored = np.array([0, 255 / 65535, 32768 / 65535, 1])
rgba = np.repeat(stored[:, None], 4, axis=1)
rgba[:, 3] = 1
kinds = {
    "floats": (rgba.astype("<f4"), 5126),
    "16 bit": (np.round(rgba * 65535).astype("<u2"), 5123),
    "8 bit ": (np.round(rgba * 255).astype("u1"), 5121),
}
print("stored", *(f"{value:.3f}" for value in stored))
read = {}
for kind, (colors, component) in kinds.items():
    (cloud,) = trimesh.load(io.BytesIO(glb(colors, component)), file_type="glb").geometry.values()
    read[kind] = cloud.colors[:, 0] / 255
    print(kind, *(f"{value:.3f}" for value in read[kind]))
right = all(np.abs(read[kind] - stored).max() < 0.01 for kind in ("floats", "8 bit "))
lost = np.allclose(read["16 bit"], [0, 1, 0, 1])
sys.exit(0 if right and lost else 1)
PYTHON
