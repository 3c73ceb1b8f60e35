"""Depth and confidence: the numbers as .npy, a picture of each for the eye, and a sheet of all.

All pictures of a scene share one colour range, so equal colours mean equal values across images. Pictures have a
palette, which is smaller and faster than three bytes a pixel.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vggt_int8.export.color import UNKNOWN, Array, Codes, color_codes, palette, widened
from vggt_int8.export.contact import Sheet
from vggt_int8.export.frames import content_of, in_order, shows_everywhere
from vggt_int8.export.percentile import Halves, counts_of, percentiles
from vggt_int8.export.png import palette_png
from vggt_int8.scene.scene import Scene

_EVERY = 3  # pixels are enough to choose a range of colours


def write_maps(
    folder: Path, scene: Scene, pool: ThreadPoolExecutor, on_frame: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """`depth/` and `confidence/` with `NNNN_name.npy` (fp32 [H, W]) and `.png` per image, and `sheet.jpg`.

    Colours span the 2nd to 98th percentile of what all images show. Depth is along the camera's z axis in a relative
    scale; near is bright and warm, far is dark and cold. The depth head's confidence, >= 1, is on a logarithmic scale,
    confident is bright. Padding, transparent pixels and what is not finite are gray. Each .png names its range in its
    text field.

    Returns the ranges of the colours and the sheet's size, None for what there is not.
    """
    kinds: list[_Kind] = []
    if scene.depth is not None:
        kinds.append(_depth_kind(folder / "depth", scene, pool))
    if scene.depth_conf is not None:
        kinds.append(_confidence_kind(folder / "confidence", scene, pool))
    summary: dict[str, Any] = {"depth": None, "confidence": None, "sheet": None}
    if not kinds:
        return summary
    sheet = Sheet(scene, len(kinds))

    def put(index: int) -> list[Image.Image]:
        codes = [kind.put(scene, index) for kind in kinds]
        tiles = sheet.tiles(index, codes)
        on_frame()
        return tiles

    for kind in kinds:
        kind.folder.mkdir()
    for index, tiles in enumerate(in_order(pool, put, range(len(scene)))):
        sheet.paste(index, tiles)
    for kind in kinds:
        summary[kind.name] = {"files": len(scene), **kind.ends}
    summary["sheet"] = sheet.save(folder / "sheet.jpg", [kind.scale_bar for kind in kinds])
    return summary


class _Kind:
    """Depth or confidence: where its files go and which colour a number has."""

    def __init__(
        self,
        folder: Path,
        numbers: Callable[[int], Array],
        share: Callable[[Array], Array],  # 0 dark, 1 bright
        ends: dict[str, float],
        scale_bar: tuple[bool, tuple[str, str, str]],  # bright at its left; what stands at left, middle and right
        note: str,
    ) -> None:
        self.name, self.folder, self.numbers, self.share = folder.name, folder, numbers, share
        self.ends, self.scale_bar, self.note = ends, scale_bar, note

    def put(self, scene: Scene, index: int) -> Codes:
        """Write both files of an image and return the colours of its pixels."""
        path, numbers = self.folder / scene.file_stem(index), self.numbers(index)
        np.save(f"{path}.npy", numbers)
        codes = color_codes(self.share(numbers))
        if not shows_everywhere(scene.transforms[index]):
            codes[~content_of(scene.transforms[index])] = UNKNOWN
        Path(f"{path}.png").write_bytes(palette_png(codes, palette(), self.note))
        return codes


def _depth_kind(folder: Path, scene: Scene, pool: ThreadPoolExecutor) -> _Kind:
    assert scene.depth is not None
    depth = scene.depth
    near, far = scene_range(scene, lambda index: depth[index].numpy(), pool)
    return _Kind(
        folder,
        lambda index: depth[index].numpy(),
        lambda numbers: (np.float32(far) - numbers) / np.float32(far - near),
        {"near": near, "far": far},
        (True, (f"{near:.3g}", f"depth {(near + far) / 2:.3g}", f"{far:.3g}")),
        f"depth, relative scale: {near:.6g} (bright, warm) to {far:.6g} (dark, cold)",
    )


def _confidence_kind(folder: Path, scene: Scene, pool: ThreadPoolExecutor) -> _Kind:
    assert scene.depth_conf is not None
    confidence = scene.depth_conf
    low, high = scene_range(scene, lambda index: confidence[index].numpy(), pool)
    start, span = np.log(low), np.log(high) - np.log(low)
    return _Kind(
        folder,
        lambda index: confidence[index].numpy(),
        lambda numbers: (np.log(numbers) - np.float32(start)) / np.float32(span),
        {"low": low, "high": high},
        (False, (f"{low:.3g}", f"confidence {np.sqrt(low * high):.3g}", f"{high:.3g}")),
        f"confidence, logarithmic: {low:.6g} (dark) to {high:.6g} (bright)",
    )


def scene_range(scene: Scene, numbers: Callable[[int], Array], pool: ThreadPoolExecutor) -> tuple[float, float]:
    """2nd and 98th percentile of every third pixel that images show, a frame at a time; never empty, and above 0 if the
    numbers are.

    numbers: index -> [H, W].
    """

    def visible(index: int) -> Array:
        found = numbers(index)
        kept = np.isfinite(found)
        if not shows_everywhere(scene.transforms[index]):
            kept &= content_of(scene.transforms[index])
        return (found.reshape(-1) if kept.all() else found[kept])[::_EVERY]

    def look_again(near: Callable[[Array], Halves]) -> Iterator[Halves]:
        return in_order(pool, lambda index: near(visible(index)), range(len(scene)))

    none = counts_of(np.empty(0, np.float32))
    counts = sum(in_order(pool, lambda index: counts_of(visible(index)), range(len(scene))), start=none)
    if not counts.any():
        return 1.0, 2.0
    low, high = percentiles(counts, (2, 98), look_again)
    return widened(low, high)
