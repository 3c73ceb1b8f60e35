"""Warnings about pitfalls of programs that read the exports, although the files are right."""

from collections.abc import Sequence

from vggt_int8.export.colmap import off_center
from vggt_int8.export.colmap_files import ColmapModel
from vggt_int8.export.naming import image_names, image_root
from vggt_int8.export.originals import stored_turned
from vggt_int8.listing import first_few
from vggt_int8.scene.scene import Scene


def cautions(scene: Scene, formats: Sequence[str], *, placed: bool, model: ColmapModel | None) -> list[str]:
    """The warnings. placed: the images are beside the exports. model: what `sparse` contains, if it was written."""
    found = []
    names_files = [name for name in ("colmap", "transforms") if name in formats]
    if names_files and not placed and (turned := stored_turned(scene)):
        found.append(
            f"{len(turned)} images are stored turned, with an EXIF orientation ({first_few(turned)}); programs that "
            f"read {' and '.join(names_files)} mostly look at pixels as they are stored: --copy-images writes them "
            "upright"
        )
    root, names = image_root(scene), image_names(scene)
    if "colmap" in formats and not placed and root is not None:
        found += _renamed([name for name, file in zip(names, scene.files, strict=True) if root / name != file])
    if model is not None:
        found += _inria(model, max(1 / side for side in scene.size))
    return found


def _renamed(names: list[str]) -> list[str]:
    if not names:
        return []
    return [
        f"{len(names)} images have names that their files do not have ({first_few(names)}), as those are no UTF-8 or "
        "come twice: --copy-images writes files of these names"
    ]


def _inria(model: ColmapModel, half_pixel: float) -> list[str]:
    """What scene/colmap_loader.py and scene/dataset_readers.py of INRIA's 3DGS make of a model.

    half_pixel: of the network's image, the shift between two conventions (see colmap.py), is allowed.
    """
    found = []
    if (part := off_center(model)) > half_pixel:
        found.append(
            f"principal points are up to {part:.2%} of an image's side away from its middle, as images are cropped or "
            "padded unevenly; the loader of INRIA's 3DGS takes the middle"
        )
    # It decodes every byte by itself, and then looks for text files that are not there.
    if foreign := [name for name in model.names if not name.isascii()]:
        found.append(
            f"{len(foreign)} images have names with letters beyond ASCII ({first_few(foreign)}), at which the loader "
            "of INRIA's 3DGS stops, asking for images.txt; other programs read them: rename the files if it shall"
        )
    return found
