"""cameras.json: for every image its pose and its intrinsics at both resolutions, with the conventions beside them."""

import math
from typing import Any

from torch import Tensor

from vggt_int8.geometry import camera_center
from vggt_int8.images import portable_name
from vggt_int8.scene.convention import CONVENTION
from vggt_int8.scene.scene import Scene


def cameras_document(scene: Scene) -> dict[str, Any] | None:
    """The content of cameras.json, or None if the scene has no cameras (camera head off)."""
    if scene.extrinsic is None or scene.intrinsic is None:
        return None
    images = [
        _camera_entry(scene, index, scene.extrinsic[index], scene.intrinsic[index]) for index in range(len(scene.names))
    ]
    return {"format_version": 1, "convention": CONVENTION, "images": images}


def _camera_entry(scene: Scene, index: int, extrinsic: Tensor, intrinsic: Tensor) -> dict[str, Any]:
    transform = scene.transforms[index]
    return {
        "index": index,
        "file": portable_name(scene.names[index]),
        "extrinsic": _json_values(extrinsic),
        "camera_center": _json_values(camera_center(extrinsic)),
        "model": {
            "size": _size(transform.model_size),
            "intrinsic": _json_values(intrinsic),
        },
        "original": {
            "size": _size(transform.original_size),
            "intrinsic": _json_values(transform.intrinsic_to_original(intrinsic)),
        },
        "scale": list(transform.scale),
        "offset": list(transform.offset),
    }


def _size(size: tuple[int, int]) -> dict[str, int]:
    return {"height": size[0], "width": size[1]}


def _json_values(tensor: Tensor) -> Any:
    """Nested lists; what JSON has no number for becomes null."""

    def clean(value: Any) -> Any:
        if isinstance(value, list):
            return [clean(item) for item in value]
        return value if math.isfinite(value) else None

    return clean(tensor.tolist())
