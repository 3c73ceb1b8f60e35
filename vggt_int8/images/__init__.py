"""Image files -> the network's input tensor, and the transform back to each original image's pixels.

Sizes are (H, W); points, scales and offsets are (x, y). "Original" means the image as it is looked at: after
its EXIF orientation has been applied.

Four ways to fit an image to `size` pixels (518 for VGGT-1B, 512 for VGGT-Ω); both sides become whole patches. For VGGT:
- `crop`: the width becomes `size`; a height above `size` is cropped around the middle.
- `pad`: the longer side becomes `size`; the other one is padded with white to a square. All pixels stay.

For VGGT-Ω; of what is more than twice as long as wide, the middle is taken first:
- `balanced`: the shape stays, with about as many patches as a square of `size` pixels has.
- `max_size`: the shape stays, and the longer side becomes `size`.

Sizes and pixels equal those of the reference preprocessing, for the same Pillow version.

`load_images` is `find_images` (which files), `check_images` (can they be opened) and `read_images` (their pixels);
a program that loads its model in between calls the three. What needs no PyTorch does not import it: the rest is loaded
when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from vggt_int8.images.check import check_images
from vggt_int8.images.decode import open_image
from vggt_int8.images.find import Source, find_images
from vggt_int8.images.formats import IMAGE_SUFFIXES, image_suffixes
from vggt_int8.images.names import portable_name, portable_stem
from vggt_int8.images.opening import MAX_PIXELS

if TYPE_CHECKING:
    from vggt_int8.images.fit import ImageTransform, Mode, fit_image
    from vggt_int8.images.load import load_images, read_images, reading

_HOMES = {
    "ImageTransform": "vggt_int8.images.fit",
    "Mode": "vggt_int8.images.fit",
    "fit_image": "vggt_int8.images.fit",
    "load_images": "vggt_int8.images.load",
    "read_images": "vggt_int8.images.load",
    "reading": "vggt_int8.images.load",
}

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "ImageTransform",
    "Mode",
    "Source",
    "check_images",
    "find_images",
    "fit_image",
    "image_suffixes",
    "load_images",
    "open_image",
    "portable_name",
    "portable_stem",
    "read_images",
    "reading",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
