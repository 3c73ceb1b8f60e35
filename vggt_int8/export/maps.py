"""Depth and confidence: the numbers as .npy, and a picture of each for the eye.

All pictures of a scene share one colour range, so equal colours mean equal values across images.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vggt_int8.export.color import Array, Colors, colorize, colorize_depth, robust_range
from vggt_int8.export.scene import Scene


def write_depth(folder: Path, scene: Scene, on_map: Callable[[], None]) -> dict[str, Any] | None:
    """`NNNN_name.npy` (float32 [H, W], relative scale) and `.png` per image -> the range of the colours.

    The colours span the 2nd to 98th percentile of all depths that images show: near is bright and warm, far
    is dark and cold; padding, transparent pixels and non-finite values are gray. Each .png names its range in its
    text field.
    """
    if scene.depth is None:
        return None
    folder.mkdir()
    shown = _shown(scene.depth.numpy(), scene)
    near, far = robust_range(shown)
    note = f"depth, relative scale: {near:.6g} (bright, warm) to {far:.6g} (dark, cold)"
    for index, (depth, visible) in enumerate(zip(scene.depth.numpy(), shown, strict=True)):
        path = folder / scene.file_stem(index)
        np.save(f"{path}.npy", depth)
        _save_picture(colorize_depth(visible, near, far), Path(f"{path}.png"), note)
        on_map()
    return {"files": len(scene.names), "near": near, "far": far}


def write_confidence(folder: Path, scene: Scene, on_map: Callable[[], None]) -> dict[str, Any] | None:
    """`NNNN_name.npy` (float32 [H, W], the depth head's confidence, >= 1) and `.png` per image -> the range.

    The colours span the 2nd to 98th percentile on a logarithmic scale: confident is bright, what no
    image shows is gray.
    """
    if scene.depth_conf is None:
        return None
    folder.mkdir()
    logs = np.log(_shown(scene.depth_conf.numpy(), scene))
    low, high = robust_range(logs)
    note = f"confidence, logarithmic: {np.exp(low):.6g} (dark) to {np.exp(high):.6g} (bright)"
    for index, (confidence, log) in enumerate(zip(scene.depth_conf.numpy(), logs, strict=True)):
        path = folder / scene.file_stem(index)
        np.save(f"{path}.npy", confidence)
        _save_picture(colorize((log - low) / (high - low)), Path(f"{path}.png"), note)
        on_map()
    return {"files": len(scene.names), "low": float(np.exp(low)), "high": float(np.exp(high))}


def _shown(values: Array, scene: Scene) -> Array:
    """Without padding and transparent pixels."""
    return np.where(scene.content.numpy(), values, np.float32(np.nan))


def _save_picture(colors: Colors, path: Path, note: str) -> None:
    text = PngInfo()
    text.add_text("Description", note)
    Image.fromarray(colors).save(path, pnginfo=text)
