"""One picture with the depth maps of several models side by side, in one colour range."""

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vggt_int8.export.color import Array, Colors, colorize, colorize_depth, robust_range

_MARGIN = 8
_TEXT_HEIGHT = 16
_MIN_TILE_WIDTH = 160  # small models' maps are enlarged by whole factors up to about this


def depth_sheet(
    depths: Mapping[str, Tensor], photos: Tensor | None = None, errors: Mapping[str, Tensor] | None = None
) -> Image.Image:
    """A row per label, a column per image: near is bright and warm, far is dark and cold, non-finite is gray.

    depths: label -> depth [S, H, W] or [S, H, W, 1], all of one shape. photos: the images [S, 3, H, W] in [0, 1],
    shown as the first row. The range is the 2nd to 98th percentile over all depths; the last line states it.
    errors: label -> relative errors of that shape, >= 0, shown as the last rows, each in a range of its own from 0
    (dark) to its 98th percentile (bright), which stands beside the label.
    """
    maps = {label: _depth_array(depth) for label, depth in depths.items()}
    error_maps = {label: _depth_array(error) for label, error in (errors or {}).items()}
    shapes = {label: values.shape for label, values in [*maps.items(), *error_maps.items()]}
    if not maps or len(set(shapes.values())) > 1:
        raise ValueError(f"depth maps must be there and have one shape, got {shapes}")
    near, far = robust_range(np.stack(list(maps.values())))
    rows: dict[str, list[Colors]] = {}
    if photos is not None:
        codes = (photos.detach().float().cpu().permute(0, 2, 3, 1) * 255).round().numpy().astype(np.uint8)
        rows["images"] = list(codes)
    for label, depth in maps.items():
        rows[label] = [colorize_depth(frame, near, far) for frame in depth]
    for label, error in error_maps.items():
        largest = robust_range(error)[1]
        rows[f"{label}: from 0 (dark) to {largest:.2%} (bright)"] = [colorize(frame / largest) for frame in error]
    return _paint(rows, f"depth from {near:.3g} (bright, warm) to {far:.3g} (dark, cold), relative scale")


def _depth_array(depth: Tensor) -> Array:
    depth = depth.detach().float().cpu()
    return (depth.squeeze(-1) if depth.dim() == 4 else depth).numpy()


def _paint(rows: Mapping[str, list[Colors]], caption: str) -> Image.Image:
    height, width = next(iter(rows.values()))[0].shape[:2]
    factor = max(1, round(_MIN_TILE_WIDTH / width))
    tile_width, tile_height = width * factor, height * factor
    num_columns = max(len(tiles) for tiles in rows.values())
    row_height = _TEXT_HEIGHT + tile_height + _MARGIN
    font = ImageFont.load_default()
    text_width = round(max(font.getlength(text) for text in [caption, *rows]))
    content_width = max(num_columns * (tile_width + _MARGIN), text_width + _MARGIN)
    sheet = Image.new("RGB", (_MARGIN + content_width, _MARGIN + len(rows) * row_height + _TEXT_HEIGHT), "white")
    draw = ImageDraw.Draw(sheet)
    for i_row, (label, tiles) in enumerate(rows.items()):
        top = _MARGIN + i_row * row_height
        draw.text((_MARGIN, top), label, fill="black", font=font)
        for i_column, tile in enumerate(tiles):
            picture = Image.fromarray(tile).resize((tile_width, tile_height), Image.Resampling.NEAREST)
            sheet.paste(picture, (_MARGIN + i_column * (tile_width + _MARGIN), top + _TEXT_HEIGHT))
    draw.text((_MARGIN, _MARGIN + len(rows) * row_height), caption, fill="black", font=font)
    return sheet
