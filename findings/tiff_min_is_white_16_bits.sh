#!/bin/sh
# Pillow 13.0.0: a gray TIFF that counts from white (PhotometricInterpretation 0, MinIsWhite: many scanners and medical
# or infrared cameras write it) is turned into black-is-0 at 8 bits, but not at 16: the same picture, saved with 8 and
# with 16 bits, opens as a positive and as its negative, without a warning. The big-endian variant is not opened at all.
# Whoever reads 16-bit TIFFs through Pillow has to look at tag 262 and invert (65535 - v).
#
# Output seen:
#   8 bits, MinIsWhite: L [255, 155, 0]
#   16 bits, MinIsWhite: I;16 [0, 25700, 65535]
#   16 bits, MinIsWhite, big-endian: UnidentifiedImageError
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --disable-pip-version-check pillow==13.0.0
cd "$folder"
venv/bin/python - <<'PYTHON'
import struct

from PIL import Image, UnidentifiedImageError


def tiff(name, values, bits, order):
    """One row of gray, uncompressed, PhotometricInterpretation 0."""
    data = struct.pack(f"{order}{len(values)}{'B' if bits == 8 else 'H'}", *values)
    tags = [(256, len(values)), (257, 1), (258, bits), (259, 1), (262, 0), (273, 122), (277, 1), (278, 1), (279, len(data))]
    entries = b"".join(
        struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in tags
    )
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    with open(name, "wb") as file:
        file.write((head + entries + struct.pack(f"{order}I", 0)).ljust(122, b"\0") + data)


def shown(name):
    try:
        with Image.open(name) as image:
            return f"{image.mode} {[image.getpixel((x, 0)) for x in range(image.width)]}"
    except UnidentifiedImageError:
        return "UnidentifiedImageError"


tiff("8.tif", [0, 100, 255], 8, "<")
tiff("16.tif", [0, 25700, 65535], 16, "<")
tiff("16_big.tif", [0, 25700, 65535], 16, ">")
found = [shown(name) for name in ("8.tif", "16.tif", "16_big.tif")]
for what, line in zip(("8 bits, MinIsWhite", "16 bits, MinIsWhite", "16 bits, MinIsWhite, big-endian"), found):
    print(f"{what}: {line}")
assert found == ["L [255, 155, 0]", "I;16 [0, 25700, 65535]", "UnidentifiedImageError"], "Pillow has changed"
PYTHON
