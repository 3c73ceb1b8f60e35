"""TIFFs that store each colour in a plane of its own (PlanarConfiguration 2), as scientific writers do.

Where such a file is not compressed, Pillow reads every plane under the first letters of the whole picture's raw mode,
which is right for 8 bits a sample alone: of "RGB;16L" the planes become "R", "G" and "B" of 8 bits, and the picture
two pictures side by side, without an error. Compressed ones are read by libtiff, which knows planes.
"""

from typing import Any

from PIL import Image

_PLANAR, _BITS, _PHOTOMETRIC, _MIN_IS_WHITE = 284, 258, 262, 0


def name_planes(image: Image.Image) -> bool:
    """Correct how the planes of an opened image are to be read; False if Pillow has no way to read them."""
    tags: Any = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    tiles: Any = getattr(image, "tile", [])
    if tags.get(_PLANAR) != 2 or any(tile.codec_name != "raw" for tile in tiles):
        return True
    bits = set(tags.get(_BITS, (1,)))
    if bits == {8}:
        gray = image.mode == "L" and tags.get(_PHOTOMETRIC) != _MIN_IS_WHITE
        return gray or (image.mode in ("RGB", "RGBA", "CMYK") and all(tile.args[0] in image.mode for tile in tiles))
    if bits != {16} or image.mode not in ("RGB", "RGBA"):
        return False
    order = "L" if tags.prefix == b"II" else "B"
    image.tile = [tile._replace(args=(f"{tile.args[0]};16{order}", *tile.args[1:])) for tile in tiles]  # type: ignore[attr-defined]
    return True
