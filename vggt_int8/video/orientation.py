"""The display matrix of a video -> how a decoded picture is turned to stand as players show it.

The matrix is read itself: the rotation that libraries derive from it is the same for a picture turned by 180 degrees
and for one mirrored left to right, as front cameras write it.
"""

import struct

from PIL import Image

_T = Image.Transpose
# Signs of (a, b, c, d): a decoded pixel at (x, y) is shown at (a x + c y, b x + d y), up to a shift.
_TURNS: dict[tuple[int, int, int, int], Image.Transpose | None] = {
    (1, 0, 0, 1): None,
    (-1, 0, 0, 1): _T.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): _T.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): _T.ROTATE_180,
    (0, 1, -1, 0): _T.ROTATE_270,  # Pillow counts counter-clockwise
    (0, -1, 1, 0): _T.ROTATE_90,
    (0, 1, 1, 0): _T.TRANSPOSE,
    (0, -1, -1, 0): _T.TRANSVERSE,
}
SIDEWAYS = frozenset({_T.ROTATE_90, _T.ROTATE_270, _T.TRANSPOSE, _T.TRANSVERSE})
_ASKEW = 0.02  # how far from a turn by whole quarters; cameras write whole ones


def turn_of(matrix: bytes) -> Image.Transpose | None:
    """Nine 32-bit integers (16.16 and 2.30 fixed point, little-endian, row by row) -> the turn; None for none.

    Raises ValueError, to follow the file's name, for a matrix that is no turn by quarters with or without a mirror.
    """
    a, b, _, c, d, _, _, _, _ = struct.unpack("<9i", matrix)
    largest = max(map(abs, (a, b, c, d)))
    if largest == 0:
        raise ValueError("its display matrix is zero: it has no orientation")
    for signs, turn in _TURNS.items():
        if all(abs(value / largest - sign) <= _ASKEW for value, sign in zip((a, b, c, d), signs, strict=True)):
            return turn
    numbers = ", ".join(f"{value / 65536:.3f}" for value in (a, b, c, d))
    raise ValueError(f"its display matrix ({numbers}) is no turn by quarters: save it upright with a video editor")
