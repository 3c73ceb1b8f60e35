"""Depth and confidence: the numbers as .npy, a picture of each for the eye, and a sheet of all.

All pictures of a scene share one colour range, so equal colours mean equal values across images.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vggt_int8.export.color import Array, Colors, colorize, colorize_depth
from vggt_int8.export.frames import in_order
from vggt_int8.export.percentile import counts_of, percentile
from vggt_int8.scene.scene import Scene


def write_depth(
    folder: Path, scene: Scene, pool: ThreadPoolExecutor, on_map: Callable[[], None] = lambda: None
) -> dict[str, Any] | None:
    """`NNNN_name.npy` (float32 [H, W], relative scale) and `.png` per image -> the range of the colours.

    The colours span the 2nd to 98th percentile of all depths that images show: near is bright and warm, far
    is dark and cold; padding, transparent pixels and non-finite values are gray. Each .png names its range in its
    text field.
    """
    if scene.depth is None:
        return None
    depth = scene.depth
    near, far = scene_range(scene, lambda index: depth[index].numpy(), pool)
    note = f"depth, relative scale: {near:.6g} (bright, warm) to {far:.6g} (dark, cold)"

    def put(index: int) -> None:
        path, numbers = folder / scene.file_stem(index), depth[index].numpy()
        np.save(f"{path}.npy", numbers)
        _save_picture(colorize_depth(shown(scene, index, numbers), near, far), Path(f"{path}.png"), note)
        on_map()

    folder.mkdir()
    for _ in in_order(pool, put, range(len(scene))):
        pass
    return {"files": len(scene), "near": near, "far": far}


def write_confidence(
    folder: Path, scene: Scene, pool: ThreadPoolExecutor, on_map: Callable[[], None] = lambda: None
) -> dict[str, Any] | None:
    """`NNNN_name.npy` (float32 [H, W], the depth head's confidence, >= 1) and `.png` per image -> the range.

    The colours span the 2nd to 98th percentile on a logarithmic scale: confident is bright, what no
    image shows is gray.
    """
    if scene.depth_conf is None:
        return None
    confidence = scene.depth_conf
    low, high = scene_range(scene, lambda index: np.log(confidence[index].numpy()), pool)
    note = f"confidence, logarithmic: {np.exp(low):.6g} (dark) to {np.exp(high):.6g} (bright)"

    def put(index: int) -> None:
        path, numbers = folder / scene.file_stem(index), confidence[index].numpy()
        np.save(f"{path}.npy", numbers)
        logs = shown(scene, index, np.log(numbers))
        _save_picture(colorize((logs - low) / (high - low)), Path(f"{path}.png"), note)
        on_map()

    folder.mkdir()
    for _ in in_order(pool, put, range(len(scene))):
        pass
    return {"files": len(scene), "low": float(np.exp(low)), "high": float(np.exp(high))}


def scene_range(scene: Scene, numbers: Callable[[int], Array], pool: ThreadPoolExecutor) -> tuple[float, float]:
    """`color.robust_range` of what all images show, a frame at a time. numbers: index -> [H, W]."""

    def visible(index: int) -> Array:
        found = numbers(index)
        return found[scene.content(index).numpy() & np.isfinite(found)]

    frames = range(len(scene))
    counts = sum(
        in_order(pool, lambda index: counts_of(visible(index)), frames), start=counts_of(np.empty(0, np.float32))
    )
    if not counts.any():
        return 0.0, 1.0
    low, high = (percentile(counts, percent, lambda: in_order(pool, visible, frames)) for percent in (2, 98))
    return (low, high) if high > low else (low, low + max(abs(low), 1.0) * 1e-3)


def shown(scene: Scene, index: int, values: Array) -> Array:
    """Without padding and transparent pixels, which become NaN."""
    return np.where(scene.content(index).numpy(), values, np.float32(np.nan))


def _save_picture(colors: Colors, path: Path, note: str) -> None:
    text = PngInfo()
    text.add_text("Description", note)
    Image.fromarray(colors).save(path, pnginfo=text, compress_level=1)
