"""Pictures with a palette as PNG files, for maps that are smooth from row to row.

The rows are stored as differences from those above (PNG's filter "up"), which Pillow leaves out for pictures with a
palette: of such differences, `Z_RLE` finds all that repeats, and takes half the time of a search for longer matches.
Format: https://www.w3.org/TR/png-3/
"""

import struct
import zlib

import numpy as np

from vggt_int8.export.color import Codes

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UP = 2  # filter of a row
_LEVEL = 1  # of zlib


def palette_png(codes: Codes, palette: bytes, description: str) -> bytes:
    """codes: uint8 [H, W], entries of `palette` (RGB of each). description: ASCII, the file's `Description`."""
    height, width = codes.shape
    rows = np.empty((height, 1 + width), dtype=np.uint8)
    rows[:, 0] = _UP
    rows[0, 1:] = codes[0]
    np.subtract(codes[1:], codes[:-1], out=rows[1:, 1:])
    packer = zlib.compressobj(_LEVEL, strategy=zlib.Z_RLE)
    content = packer.compress(rows.data) + packer.flush()
    header = struct.pack(">2I5B", width, height, 8, 3, 0, 0, 0)  # 8 bits, palette, not interlaced
    text = b"Description\0" + description.encode("ascii")
    chunks = ((b"IHDR", header), (b"PLTE", palette), (b"tEXt", text), (b"IDAT", content), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
