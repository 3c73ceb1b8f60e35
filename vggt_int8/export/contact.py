"""`sheet.png`: all images of a scene at a glance, each over its depth and confidence, with a scale bar for both.

Tiles become smaller as images become more, so that the sheet stays one picture.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vggt_int8.export.color import Colors, color_table, colorize, colorize_depth
from vggt_int8.export.maps import shown
from vggt_int8.scene.scene import Scene

_WIDTH = 2400  # of the sheet, about; pixels
_TILES = (40, 240)  # least and most width of a tile
_AREA = 12e6  # pixels of all tiles, about
_MARGIN, _TEXT = 8, 16
_BAR = (320, 14)  # width, height


def write_sheet(
    path: Path, scene: Scene, depth: dict[str, Any] | None, confidence: dict[str, Any] | None
) -> dict[str, Any] | None:
    """Write the sheet -> its size; None where there is neither depth nor confidence.

    depth, confidence: the ranges of colours, as `maps.write_depth` and `write_confidence` return them.
    """
    if depth is None and confidence is None:
        return None
    height, width = scene.size
    count = len(scene)
    rows = 1 + (depth is not None) + (confidence is not None)
    tile_width = math.sqrt(_AREA / (count * rows * height / width))
    tile_width = round(min(max(tile_width, _TILES[0]), _TILES[1]))
    tile_height = max(1, round(tile_width * height / width))
    columns = max(1, min(count, (_WIDTH - _MARGIN) // (tile_width + _MARGIN)))
    block = _TEXT + rows * (tile_height + 1) + _MARGIN
    bars = (_TEXT + _BAR[1] + _MARGIN) * (rows - 1)
    size = (
        max(_MARGIN + columns * (tile_width + _MARGIN), _BAR[0] + 2 * _MARGIN),
        _MARGIN + math.ceil(count / columns) * block + bars,
    )
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for index in range(count):
        left = _MARGIN + index % columns * (tile_width + _MARGIN)
        top = _MARGIN + index // columns * block
        draw.text((left, top), _fitting(scene.file_stem(index), font, tile_width), fill="black", font=font)
        for number, colors in enumerate(_tiles(scene, index, depth, confidence)):
            tile = Image.fromarray(colors).resize((tile_width, tile_height), Image.Resampling.BOX)
            sheet.paste(tile, (left, top + _TEXT + number * (tile_height + 1)))
    top = size[1] - bars
    if depth is not None:
        ends = f"{depth['near']:.3g}", f"depth {(depth['near'] + depth['far']) / 2:.3g}", f"{depth['far']:.3g}"
        top = _scale_bar(sheet, draw, top, color_table()[::-1], ends)
    if confidence is not None:
        middle = math.sqrt(confidence["low"] * confidence["high"])
        ends = f"{confidence['low']:.3g}", f"confidence {middle:.3g}", f"{confidence['high']:.3g}"
        _scale_bar(sheet, draw, top, color_table(), ends)
    sheet.save(path, compress_level=1)
    return {"width": size[0], "height": size[1]}


def _tiles(scene: Scene, index: int, depth: dict[str, Any] | None, confidence: dict[str, Any] | None) -> list[Colors]:
    tiles: list[Colors] = [scene.colors[index].numpy()]
    if depth is not None and scene.depth is not None:
        tiles.append(colorize_depth(shown(scene, index, scene.depth[index].numpy()), depth["near"], depth["far"]))
    if confidence is not None and scene.depth_conf is not None:
        low, high = np.log(confidence["low"]), np.log(confidence["high"])
        tiles.append(colorize((shown(scene, index, np.log(scene.depth_conf[index].numpy())) - low) / (high - low)))
    return tiles


def _scale_bar(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, top: int, table: Colors, texts: tuple[str, str, str]
) -> int:
    """A bar with what stands at its left, middle and right; returns where the next one begins."""
    bar = Image.fromarray(np.ascontiguousarray(table[None])).resize(_BAR, Image.Resampling.BILINEAR)
    sheet.paste(bar, (_MARGIN, top + _TEXT))
    for text, place, anchor in zip(texts, (0, _BAR[0] // 2, _BAR[0]), ("la", "ma", "ra"), strict=True):
        draw.text((_MARGIN + place, top), text, fill="black", font=ImageFont.load_default(), anchor=anchor)
    return top + _TEXT + _BAR[1] + _MARGIN


def _fitting(text: str, font: Any, width: int) -> str:
    """As much of a name as is not wider than its tile. The font has no letters beyond Latin ones."""
    text = text.encode("ascii", "replace").decode()
    while text and font.getlength(text) > width:
        text = text[:-1]
    return text
