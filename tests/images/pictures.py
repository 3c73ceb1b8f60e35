"""A picture of three ramps, and files of pictures."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def scene(width: int = 800, height: int = 600) -> Image.Image:
    rows, columns = np.linspace(0, 255, height)[:, None], np.linspace(0, 255, width)
    bands = np.broadcast_arrays(rows, columns, (rows + columns) / 2)
    return Image.fromarray(np.stack(bands, -1).astype(np.uint8))


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
