#!/bin/sh
# Pillow 13.0.0: in a gray PNG of 2 or 4 bits with a transparent gray value (tRNS), Pillow spreads the pixels over 0 to
# 255, but leaves the transparent value as it is in the file. No pixel equals it any more, so convert("RGBA") gives a
# picture that is opaque everywhere, without a warning: masks made this way (indexed masks, map tiles, small icons) are
# lost. At 1 and 8 bits the same file works. The way out is to scale info["transparency"] by 255 / (2^bits - 1).
#
# Output seen (alpha of four pixels, of which the second is transparent by the file):
#   1 bit:  [255, 0, 255, 255]
#   2 bits: [255, 255, 255, 255]
#   4 bits: [255, 255, 255, 255]
#   8 bits: [255, 0, 255, 255]
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --disable-pip-version-check pillow==13.0.0
cd "$folder"
venv/bin/python - <<'PYTHON'
import struct
import zlib

from PIL import Image


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(name, bits):
    """Four gray pixels 0, 1, 0, 0, of which the value 1 is transparent."""
    row = {1: b"\x40", 2: b"\x10", 4: b"\x01\x00", 8: b"\x00\x01\x00\x00"}[bits]
    with open(name, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, bits, 0, 0, 0, 0)))
        file.write(chunk(b"tRNS", struct.pack(">H", 1)) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b""))


found = {}
for bits in (1, 2, 4, 8):
    png("a.png", bits)
    with Image.open("a.png") as image:
        alpha = image.convert("RGBA").getchannel("A")
        found[bits] = [alpha.getpixel((x, 0)) for x in range(4)]
    print(f"{bits} bit{'s' if bits > 1 else ''}: {found[bits]}")
lost, kept = [255, 255, 255, 255], [255, 0, 255, 255]
assert found == {1: kept, 2: lost, 4: lost, 8: kept}, "Pillow has changed"
PYTHON
