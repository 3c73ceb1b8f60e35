"""The original images beside an export: copied, linked, or rewritten upright if the file is stored rotated.

Cameras belong to the upright image. Programs that read the stored pixels, as COLMAP and all loaders for 3DGS do, see a
photograph with an EXIF orientation on its side, so those are never linked or copied unchanged. Smaller copies for
training go to `images_2`, `images_4` and `images_8`.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from vggt_int8.export.frames import in_order
from vggt_int8.export.naming import image_names
from vggt_int8.images import open_image
from vggt_int8.images.decode import read_orientation
from vggt_int8.listing import first_few
from vggt_int8.scene.scene import Scene

Placing = Literal["copy", "link"]
SCALES = (2, 4, 8)
_SAVING: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}
_SAVED_AS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}


def stored_turned(scene: Scene) -> list[str]:
    """The names of images whose file is stored in another orientation than it is looked at."""
    names = zip(image_names(scene), scene.files, strict=True)
    return [name for name, file in names if file is not None and file.is_file() and read_orientation(file)[0] != 1]


def place_images(
    folder: Path,
    scene: Scene,
    how: Placing,
    pool: ThreadPoolExecutor,
    scales: Sequence[int] = (),
    on_frame: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Write `images/NAME`, and `images_N/NAME` for each scale, below `folder` -> how many are there in which way.

    Raises ValueError for frames without a file, and for an image that must be written anew in a format that cannot be;
    FileNotFoundError for one that is gone since it was read; ValueError if its size is another one now.
    """
    names = image_names(scene)
    if homeless := [name for name, file in zip(names, scene.files, strict=True) if file is None]:
        raise ValueError(f"{len(homeless)} images have no file of their own to copy: {first_few(homeless)}")

    def place(index: int) -> str:
        source = scene.files[index]
        assert source is not None
        target = folder / "images" / names[index]
        target.parent.mkdir(parents=True, exist_ok=True)
        orientation, size = read_orientation(source)
        if size != (expected := scene.transforms[index].original_size):
            raise ValueError(f"{source} has {size} pixels (H, W) and had {expected} when it was read")
        upright = orientation == 1
        picture = open_image(source) if scales or not upright else None
        if upright and how == "link":
            target.symlink_to(source)
        elif upright:
            shutil.copyfile(source, target)
        else:
            assert picture is not None
            _save(picture, target)
        for scale in scales:
            assert picture is not None
            smaller = folder / f"images_{scale}" / names[index]
            smaller.parent.mkdir(parents=True, exist_ok=True)
            size = (max(1, round(picture.width / scale)), max(1, round(picture.height / scale)))
            _save(picture.resize(size, Image.Resampling.LANCZOS), smaller)
        on_frame()
        return ("linked" if how == "link" else "copied") if upright else "written_upright"

    counts = {"linked": 0, "copied": 0, "written_upright": 0}
    for kind in in_order(pool, place, range(len(scene))):
        counts[kind] += 1
    return {**counts, "scales": list(scales)}


def relative_path(file: Path, folder: Path) -> str:
    """Where an image lies, seen from a folder, with `/`."""
    return Path(os.path.relpath(file, folder)).as_posix()


def _save(picture: Image.Image, target: Path) -> None:
    kind = _SAVED_AS.get(target.suffix.lower())
    if kind is None:
        raise ValueError(
            f"{target.name} must be written anew, and this program writes {', '.join(sorted(_SAVED_AS))} alone: "
            "convert it first"
        )
    picture.save(target, kind, **_SAVING.get(kind, {}))
