"""Compares two models' outputs on the same images: by relative and largest error, never by cosine similarity alone."""

from typing import Any

import torch
from torch import Tensor, nn

from vggt_int8.difference import Difference
from vggt_int8.eval.metrics import geometric_differences
from vggt_int8.model.call import check_is_tensor

_NOT_COMPARED = ("images", "pose_enc_list")


@torch.no_grad()
def compare_model_outputs(
    reference: nn.Module, other: nn.Module, images: Tensor, query_points: Tensor | None = None
) -> dict[str, Any]:
    """Run both models on `images` [S, 3, H, W] and measure how far `other` is from `reference`.

    The models may be on different devices; each gets the images on its own.

    Returns `{"overall": m, "<output>": m, ...}` with `m = {"mae", "max_diff", "cosine", "sqnr_db", "relative"}`, and
    the entries of "overall" at the top level as well. "overall" covers all values of all outputs together. mae and
    max_diff are in the output's own unit; sqnr_db = 10 log10(signal power / error power), infinite for equal outputs;
    relative = error norm / reference norm. Values that are infinite in both (an intrinsic for a field of view of zero)
    are left out. "geometry", if there are cameras, depth or points, gives the same in degrees and percent: see
    `vggt_int8.eval.metrics.geometric_differences`.

    Raises `ValueError` if the two do not give the same outputs, `TypeError` for arguments that are not models or
    tensors.
    """
    for what, model in (("reference", reference), ("other", other)):
        if not isinstance(model, nn.Module):
            raise TypeError(f"{what} must be a torch.nn.Module, not a {type(model).__name__}")
    check_is_tensor(images)
    first, second = _run(reference, images, query_points), _run(other, images, query_points)
    if first.keys() != second.keys():
        raise ValueError(f"the models give different outputs: {sorted(first)} and {sorted(second)}")
    pairs = {}
    for name in first:
        if first[name].shape != second[name].shape:
            raise ValueError(f"{name} has shape {list(first[name].shape)} and {list(second[name].shape)}")
        same = first[name].isinf() & (first[name] == second[name])
        pairs[name] = (first[name][~same], second[name][~same])
    everything = (torch.cat([a for a, _ in pairs.values()]), torch.cat([b for _, b in pairs.values()]))
    overall = _measures(*everything)
    result = {**overall, "overall": overall, **{name: _measures(*pair) for name, pair in pairs.items()}}
    geometry = geometric_differences(first, second, (images.shape[-2], images.shape[-1]))
    return {**result, "geometry": geometry} if geometry else result


def _measures(reference: Tensor, other: Tensor) -> dict[str, float]:
    found = Difference().add(other, reference)
    return {
        "mae": found.mean_abs,
        "max_diff": found.max_abs,
        "cosine": found.cosine,
        "sqnr_db": found.sqnr_db,
        "relative": found.relative,
    }


def _run(model: nn.Module, images: Tensor, query_points: Tensor | None) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    if device.type == "meta":  # offloaded: its hooks move the inputs
        device = images.device
    points = {} if query_points is None else {"query_points": query_points.to(device)}
    output = model(images.to(device), **points)
    return {
        name: value.float().cpu()
        for name, value in output.items()
        if isinstance(value, Tensor) and name not in _NOT_COMPARED
    }
