"""Pictures of a few scenes: depth and its errors side by side, clouds from above and behind the first camera."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vggt_int8.chart import Axis, Panel, draw_svg
from vggt_int8.eval.metrics import align_depth, umeyama
from vggt_int8.export import depth_sheet
from vggt_int8.scorecard.data import TrueScene
from vggt_int8.scorecard.scores import Outputs, Reconstruction

# Both pictures fit the page's 1200 pixels, which would shrink wider ones until their captions cannot be read.
VIEWS = 4  # shown of a scene
_DEPTH_WIDTH = 280  # of a view at most; larger ones are thinned out
CLOUD_SIZE = (320, 240)  # width, height, pixels
_CLOUDS_IN_A_ROW = 3
_MARGIN, _TEXT = 8, 16
_PITCH_DEGREES = 25.0


def depth_picture(truth: TrueScene, rows: Mapping[str, Outputs]) -> Image.Image | None:
    """Images, true depth, each model's depth at the truth's scale; errors against the truth, and against the first
    model. None where no depth is known or predicted."""
    if truth.depth is None or truth.valid is None or not truth.valid.any():
        return None
    known = truth.valid
    depths = {}
    for label, outputs in rows.items():
        if "depth" in outputs:
            depth = outputs["depth"].squeeze(-1)
            scale = align_depth(depth[known], truth.depth[known], "scale") / depth[known]
            depths[label] = depth * scale.nanmedian()
    if not depths:
        return None
    wanted = torch.where(known, truth.depth, torch.nan)
    first, plain = next(iter(depths.items()))
    errors = {f"{label}: |error| / truth": (depth - wanted).abs() / wanted for label, depth in depths.items()}
    errors |= {
        f"{label}: |difference from {first}| / {first}": (depth - plain).abs() / plain
        for label, depth in depths.items()
        if label != first
    }
    step = math.ceil(wanted.shape[-1] / _DEPTH_WIDTH)
    shown = (slice(0, VIEWS), ..., slice(None, None, step), slice(None, None, step))
    return depth_sheet(
        {label: depth[shown] for label, depth in {"truth": wanted, **depths}.items()},
        truth.images[shown],
        {label: error[shown] for label, error in errors.items()},
    )


def cloud_picture(truth: TrueScene, rows: Mapping[str, Outputs]) -> Image.Image | None:
    """The true cloud and each model's, aligned to it, in one view. None where no points are known."""
    true = truth.points()
    if true is None or truth.valid is None or not truth.valid.any():
        return None
    size = (truth.images.shape[-2], truth.images.shape[-1])
    colors = (truth.images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8)
    clouds = {"truth": (true[truth.valid].double(), colors[truth.valid])}
    for label, outputs in rows.items():
        points = Reconstruction.of(outputs, size).points
        if points is not None:
            pairs = truth.valid & points.isfinite().all(-1)
            aligned = umeyama(points[pairs], true[pairs]).apply(points[pairs])
            clouds[label] = (aligned, colors[pairs])
    seen = {label: _seen(points) for label, (points, _) in clouds.items()}
    low, high = (np.percentile(seen["truth"][:, :2], share, axis=0) for share in (1, 99))
    tiles = {label: _paint(seen[label], clouds[label][1].numpy(), low, high) for label in clouds}
    return _labelled(tiles)


def _labelled(tiles: Mapping[str, Image.Image]) -> Image.Image:
    """Clouds below their labels, a few in a row."""
    width, height = CLOUD_SIZE[0] + _MARGIN, CLOUD_SIZE[1] + _TEXT + _MARGIN
    columns, rows = min(len(tiles), _CLOUDS_IN_A_ROW), math.ceil(len(tiles) / _CLOUDS_IN_A_ROW)
    sheet = Image.new("RGB", (_MARGIN + columns * width, _MARGIN + rows * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for index, (label, tile) in enumerate(tiles.items()):
        row, column = divmod(index, _CLOUDS_IN_A_ROW)
        left, top = _MARGIN + column * width, _MARGIN + row * height
        draw.text((left, top), label, fill="black", font=font)
        sheet.paste(tile, (left, top + _TEXT))
    return sheet


def sqnr_chart(rows: Mapping[str, Mapping[str, float]]) -> str:
    """SVG: the SQNR of each layer in the order of the network, a line a row. Exact layers are left out."""
    order = list(dict.fromkeys(layer for values in rows.values() for layer in values))
    series = {
        label: [(float(i), values[layer]) for i, layer in enumerate(order) if np.isfinite(values.get(layer, np.inf))]
        for label, values in rows.items()
    }
    panel = Panel("SQNR of single layers", series, Axis("layer, in the network's order"), Axis("dB"), markers=True)
    return draw_svg([panel], columns=1, size=(880, 320))


def range_chart(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """SVG: the calibrated range of each static layer, for special tokens and for others. A layer has the same place in
    every row, also where rows have other static layers.

    rows: label -> facts of calibration.
    """
    order = sorted({layer for facts in rows.values() for layer in facts["ranges"]})
    series = {}
    for label, facts in rows.items():
        ranges = [(float(i), facts["ranges"][layer]) for i, layer in enumerate(order) if layer in facts["ranges"]]
        for index, tokens in ((0, "special tokens"), (-1, "other tokens")):
            series[f"{label}: {tokens}"] = [(place, float(found[index])) for place, found in ranges]
    axes = (Axis("static layer, by name"), Axis("largest input", log=True))
    return draw_svg([Panel("Calibrated ranges", series, *axes, markers=True)], columns=1, size=(880, 320))


def _seen(points: Tensor) -> np.ndarray:
    """[N, 3] -> right, down and away, as a far viewer sees it who stands above and behind the first camera."""
    pitch = np.deg2rad(_PITCH_DEGREES)
    turn = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    return points.numpy() @ turn.T


def _paint(seen: np.ndarray, colors: np.ndarray, low: np.ndarray, high: np.ndarray) -> Image.Image:
    """Dots of two pixels, near ones over far ones; `low` and `high` (right, down) fit into the tile."""
    width, height = CLOUD_SIZE
    factor = min((size - 1) / max(span, 1e-12) for size, span in zip(CLOUD_SIZE, high - low, strict=True))
    middle = np.array([width, height]) / 2
    place = np.round((seen[:, :2] - (low + high) / 2) * factor + middle).astype(np.int64)
    order = np.argsort(-seen[:, 2], kind="stable")
    canvas = np.full((height, width, 3), 255, dtype=np.uint8)
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x, y = place[order, 0] + dx, place[order, 1] + dy
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        canvas[y[inside], x[inside]] = colors[order][inside]
    return Image.fromarray(canvas)
