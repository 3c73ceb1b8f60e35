"""cameras.json: for every image its pose and its intrinsics at both resolutions, with the conventions beside them."""

import math
from typing import Any

from torch import Tensor

from vggt_int8.geometry import camera_center
from vggt_int8.images import portable_name
from vggt_int8.images.fit import intrinsics_to_original
from vggt_int8.scene.convention import CONVENTION
from vggt_int8.scene.scene import Scene


def cameras_document(scene: Scene) -> dict[str, Any] | None:
    """The content of cameras.json, or None if the scene has no cameras (camera head off)."""
    if scene.extrinsic is None or scene.intrinsic is None:
        return None
    extrinsics, centers = _json_values(scene.extrinsic), _json_values(camera_center(scene.extrinsic))
    intrinsics = _json_values(scene.intrinsic)
    originals = _json_values(intrinsics_to_original(scene.transforms, scene.intrinsic))
    images = [
        {
            "index": index,
            "file": portable_name(scene.names[index]),
            "extrinsic": extrinsics[index],
            "camera_center": centers[index],
            "model": {"size": _size(transform.model_size), "intrinsic": intrinsics[index]},
            "original": {"size": _size(transform.original_size), "intrinsic": originals[index]},
            "scale": list(transform.scale),
            "offset": list(transform.offset),
        }
        for index, transform in enumerate(scene.transforms)
    ]
    return {"format_version": 1, "convention": CONVENTION, "images": images}


def _size(size: tuple[int, int]) -> dict[str, int]:
    return {"height": size[0], "width": size[1]}


def _json_values(tensor: Tensor) -> Any:
    """Nested lists; what JSON has no number for becomes null."""
    if tensor.isfinite().all():
        return tensor.tolist()

    def clean(value: Any) -> Any:
        if isinstance(value, list):
            return [clean(item) for item in value]
        return value if math.isfinite(value) else None

    return clean(tensor.tolist())
