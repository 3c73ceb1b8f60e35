"""`sheet.jpg`: all images of a scene at a glance, each over its depth and confidence, with a scale bar for both.

Tiles become smaller as images become more, so that the sheet stays one picture.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vggt_int8.export.color import Codes, color_table, palette
from vggt_int8.scene.scene import Scene

_WIDTH = 2400  # of the sheet, about; pixels
_TILES = (40, 240)  # least and most width of a tile
_AREA = 6e6  # pixels of all tiles, about
_TALLEST = 65000  # a JPEG ends at 65535
_MARGIN, _TEXT = 8, 16
_BAR = (320, 14)  # width, height


class Sheet:
    """Tiles are made in any thread and pasted by one; `maps` maps stand below each image."""

    def __init__(self, scene: Scene, maps: int) -> None:
        height, width = scene.size
        count, self.rows, self.scene = len(scene), 1 + maps, scene
        across = math.sqrt(_AREA / (count * self.rows * height / width))
        self.width = round(min(max(across, _TILES[0]), _TILES[1]))
        self.height = max(1, round(self.width * height / width))
        block = _TEXT + self.rows * (self.height + 1) + _MARGIN
        fitting = max(1, (_WIDTH - _MARGIN) // (self.width + _MARGIN))
        self.columns = min(count, max(fitting, math.ceil(count * block / _TALLEST)))
        self.block = block
        self.bars = (_TEXT + _BAR[1] + _MARGIN) * maps
        size = (
            max(_MARGIN + self.columns * (self.width + _MARGIN), _BAR[0] + 2 * _MARGIN),
            _MARGIN + math.ceil(count / self.columns) * block + self.bars,
        )
        self.picture = Image.new("RGB", size, "white")
        self.draw, self.font = ImageDraw.Draw(self.picture), ImageFont.load_default()

    def tiles(self, index: int, maps: Sequence[Codes]) -> list[Image.Image]:
        """The image, and its maps as codes of `color.palette`, at the size of a tile."""
        size = (self.width, self.height)
        step = max(1, min(maps[0].shape[0] // self.height, maps[0].shape[1] // self.width)) if maps else 1
        tiles = [Image.fromarray(self.scene.colors[index].numpy()).resize(size, Image.Resampling.BOX)]
        for codes in maps:
            tile = Image.fromarray(np.ascontiguousarray(codes[::step, ::step]))
            tile.putpalette(palette())
            tiles.append(tile.convert("RGB").resize(size, Image.Resampling.BOX))
        return tiles

    def paste(self, index: int, tiles: Sequence[Image.Image]) -> None:
        left = _MARGIN + index % self.columns * (self.width + _MARGIN)
        top = _MARGIN + index // self.columns * self.block
        name = _fitting(self.scene.file_stem(index), self.font, self.width)
        self.draw.text((left, top), name, fill="black", font=self.font)
        for number, tile in enumerate(tiles):
            self.picture.paste(tile, (left, top + _TEXT + number * (self.height + 1)))

    def save(self, path: Path, bars: Sequence[tuple[bool, tuple[str, str, str]]]) -> dict[str, Any]:
        """Draw a scale bar for each map (bright at its left; what stands at left, middle and right) and write it."""
        top = self.picture.height - self.bars
        for bright_first, texts in bars:
            table = color_table()[::-1] if bright_first else color_table()
            bar = Image.fromarray(np.ascontiguousarray(table[None])).resize(_BAR, Image.Resampling.BILINEAR)
            self.picture.paste(bar, (_MARGIN, top + _TEXT))
            for text, place, anchor in zip(texts, (0, _BAR[0] // 2, _BAR[0]), ("la", "ma", "ra"), strict=True):
                self.draw.text((_MARGIN + place, top), text, fill="black", font=self.font, anchor=anchor)
            top += _TEXT + _BAR[1] + _MARGIN
        self.picture.save(path, quality=90)
        return {"width": self.picture.width, "height": self.picture.height}


def _fitting(text: str, font: Any, width: int) -> str:
    """As much of a name as is not wider than its tile. The font has no letters beyond Latin ones."""
    text = text.encode("ascii", "replace").decode()
    fitting = bisect_right(range(len(text) + 1), width, key=lambda length: font.getlength(text[:length]))
    return text[: fitting - 1]
