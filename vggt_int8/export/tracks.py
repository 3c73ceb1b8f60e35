"""Tracks as a table, `tracks.csv`, and drawn on the images, `tracks/NNNN_name.jpg`."""

import csv
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from vggt_int8.export.color import Colors, color_table
from vggt_int8.export.frames import in_order
from vggt_int8.scene.scene import Scene, Tracks

VISIBLE = 0.5  # from this visibility on, a point is drawn full; below, as a ring
POINTS = 256  # unless it is said otherwise
_TRAIL = 8  # images that a trail goes back
_LEAST_WIDTH = 800  # of a picture; smaller images are enlarged by whole factors
COLUMNS = ("track", "image", "name", "x", "y", "visibility", "confidence")


def query_grid(content: Tensor, count: int) -> Tensor:
    """About `count` points on an even grid over what an image shows: bool [H, W] -> fp32 [N, 2] (x, y), N <= count.

    Raises ValueError if nothing is shown.
    """
    rows, columns = content.any(dim=1).nonzero().flatten(), content.any(dim=0).nonzero().flatten()
    if not len(rows):
        raise ValueError("the first image shows nothing (it is transparent), so it has no points to track")
    top, left = int(rows[0]), int(columns[0])
    height, width = int(rows[-1]) - top + 1, int(columns[-1]) - left + 1
    across = max(1, min(count, round((count * width / height) ** 0.5)))
    down = max(1, count // across)
    x = left + (torch.arange(across) + 0.5) * width / across - 0.5
    y = top + (torch.arange(down) + 0.5) * height / down - 0.5
    points = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)
    shown = content[points[:, 1].round().long().clamp(0, len(content) - 1), points[:, 0].round().long()]
    return points[shown] if bool(shown.any()) else points


def write_tracks(
    folder: Path, scene: Scene, pool: ThreadPoolExecutor, on_frame: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Write both below `folder` -> counts for the report. The scene has tracks.

    The table has a row per track and image: `x` and `y` in pixels of the original image, from its top left corner (the
    first pixel is centred on (0.5, 0.5)), and the network's visibility and confidence in [0, 1].
    """
    tracks = scene.tracks
    assert tracks is not None
    with (folder / "tracks.csv").open("x", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for index in range(len(scene)):
            places = scene.transforms[index].points_to_original(tracks.points[index] + 0.5).tolist()
            rows = zip(places, tracks.visibility[index].tolist(), tracks.confidence[index].tolist(), strict=True)
            name = scene.file_stem(index)
            for number, ((x, y), visible, sure) in enumerate(rows):
                table.writerow([number, index, name, f"{x:.3f}", f"{y:.3f}", f"{visible:.4f}", f"{sure:.4f}"])
    (folder / "tracks").mkdir()

    def draw(index: int) -> None:
        _picture(scene, tracks, index).save(folder / "tracks" / f"{scene.file_stem(index)}.jpg", quality=90)
        on_frame()

    for _ in in_order(pool, draw, range(len(scene))):
        pass
    seen = (tracks.visibility >= VISIBLE).sum(dim=0)
    return {"points": tracks.points.shape[1], "seen_in_all_images": int((seen == len(scene)).sum())}


def track_shades(count: int) -> Colors:
    """uint8 [count, 3]: a colour for each track, the first dark, none too dark to be seen."""
    return color_table()[np.linspace(60, 255, count).astype(int)]


def _picture(scene: Scene, tracks: Tracks, index: int) -> Image.Image:
    """An image with the points that are seen, trails of where they came from, and rings where they are hidden."""
    height, width = scene.size
    factor = max(1, round(_LEAST_WIDTH / width))
    picture = Image.fromarray(scene.colors[index].numpy()).resize(
        (width * factor, height * factor), Image.Resampling.BILINEAR
    )
    draw = ImageDraw.Draw(picture)
    first = max(0, index - _TRAIL)
    places = ((tracks.points[first : index + 1] + 0.5) * factor).numpy()  # [T, N, 2]
    seen = (tracks.visibility[first : index + 1] >= VISIBLE).numpy()
    for number, shade in enumerate(map(tuple, track_shades(places.shape[1]).tolist())):
        trail = [tuple(place) for place, here in zip(places[:, number].tolist(), seen[:, number], strict=True) if here]
        if len(trail) > 1 and seen[-1, number]:
            draw.line(trail, fill=shade, width=2)
        x, y = places[-1, number].tolist()
        if seen[-1, number]:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=shade, outline="black")
        else:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), outline=shade)
    return picture
