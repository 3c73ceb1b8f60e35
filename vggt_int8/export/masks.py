"""Masks from a folder: for every image a mask with its stem, in which white is kept and black left out.

`photos/a/1.jpg` has its mask in `masks/a/1.png` or `masks/1.png`; `1.jpg.png`, COLMAP's naming, works as well. Sizes
may differ: a mask is stretched over the upright image, after its EXIF orientation.
"""

from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vggt_int8.export.naming import image_names
from vggt_int8.images import ImageTransform, image_suffixes, open_image
from vggt_int8.listing import first_few
from vggt_int8.scene.scene import Scene


def find_masks(folder: Path, scene: Scene) -> list[Path]:
    """One mask per image, in their order. Raises FileNotFoundError, NotADirectoryError, or ValueError if images lack
    one or have several.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise (NotADirectoryError if folder.exists() else FileNotFoundError)(f"{folder}, for masks, is no folder")
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in image_suffixes() and path.is_file():
            relative = path.relative_to(folder)
            stem = relative.with_suffix("")
            found[stem.as_posix()].append(path)
            if stem.suffix.lower() in image_suffixes():
                found[stem.with_suffix("").as_posix()].append(path)
    masks, missing = [], []
    for name in image_names(scene):
        stem = Path(name).with_suffix("")
        candidates = found.get(stem.as_posix()) or found.get(stem.name) or []
        if len(candidates) > 1:
            raise ValueError(f"several masks for {name}: {first_few([str(path) for path in candidates])}")
        masks += candidates
        if not candidates:
            missing.append(name)
    if missing:
        raise ValueError(f"no mask in {folder} for {len(missing)} of {len(scene)} images: {first_few(missing)}")
    return masks


def read_mask(path: Path, transform: ImageTransform) -> NDArray[np.bool_]:
    """bool [H, W] of the model's image: True where the mask is white (from the middle up); False on padding."""
    with open_image(path) as image:
        gray = image.convert("L")
    height, width = transform.model_size
    (scale_x, scale_y), (left, top) = transform.scale, transform.offset
    original_height, original_width = transform.original_size
    # Where the first and last edge of the model's image lie in the mask's pixels.
    across, down = gray.width / original_width / scale_x, gray.height / original_height / scale_y
    matrix = (across, 0.0, -left * across, 0.0, down, -top * down)
    fitted = gray.transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=0)
    return np.asarray(fitted) >= 128
