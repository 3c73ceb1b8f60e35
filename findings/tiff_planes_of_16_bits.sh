#!/bin/sh
# Pillow 13.0.0: a TIFF of 16 bits that stores each colour in a plane of its own (PlanarConfiguration 2, uncompressed:
# what tifffile writes for an array [3, H, W] unless told otherwise) is opened as RGB and read as noise, without an error or
# a warning: each plane is taken for one of 8 bits, so high and low bytes become neighbouring pixels. The same file with
# deflate compression goes through libtiff and is right, and so are planes of 8 bits.
# Whoever reads 16-bit TIFFs through Pillow has to look at tag 284 and name the raw modes ("R;16L") in `image.tile`.
#
# Output seen (the picture is red 0x6400, green 0xC800, blue 0xFF00 everywhere):
#   8 bits: RGB [(100, 200, 255)]
#   16 bits, deflate: RGB [(100, 200, 255)]
#   16 bits: RGB [(0, 0, 0), (100, 200, 255)]
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --disable-pip-version-check pillow==13.0.0 tifffile==2025.5.10 numpy==2.2.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import numpy as np
import tifffile
from PIL import Image

colours = np.broadcast_to(np.array([0x6400, 0xC800, 0xFF00], np.uint16)[:, None, None], (3, 4, 8))
tifffile.imwrite("8.tif", (colours >> 8).astype(np.uint8), photometric="rgb")
tifffile.imwrite("deflate.tif", colours, photometric="rgb", compression="zlib")
tifffile.imwrite("16.tif", colours, photometric="rgb")
found = []
for what, name in (("8 bits", "8.tif"), ("16 bits, deflate", "deflate.tif"), ("16 bits", "16.tif")):
    with Image.open(name) as image:
        assert image.tag_v2[284] == 2
        found.append(f"{image.mode} {sorted({image.getpixel((x, 0)) for x in range(image.width)})}")
    print(f"{what}: {found[-1]}")
right = "RGB [(100, 200, 255)]"
assert found == [right, right, "RGB [(0, 0, 0), (100, 200, 255)]"], "Pillow has changed"
PYTHON
