"""Read CO3Dv2's annotations (Reizenstein et al., "Common Objects in 3D", ICCV 2021): the cameras of all sequences.

    CATEGORY/frame_annotations.jgz    a gzipped JSON list: sequence, number, image and viewpoint of each frame
    CATEGORY/SEQUENCE/images/*.jpg    image paths are relative to the parent of the category folder

Viewpoints follow PyTorch3D: x_camera = x_world R + T for row vectors, with x to the left and y up. Focal length and
principal point are in units of half the shorter side ("ndc_isotropic") or half of each side ("ndc_norm_image_bounds").
The principal point is relative to the image centre, positive to the left and up.
"""

import gzip
import json
import zlib
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from vggt_int8.data.camera import Camera, ModelError
from vggt_int8.data.colmap import Model, PosedImage
from vggt_int8.plain_data import shown

ANNOTATIONS = "frame_annotations.jgz"
_LARGEST = 4 << 30  # bytes of a category's annotations, unpacked; the largest has some 400 MB
_TURN = torch.tensor([[-1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)  # to x right, y down


def categories(folder: Path) -> list[Path]:
    """The category folders: `folder` itself, or its subfolders. Raises FileNotFoundError."""
    found = [folder] if (folder / ANNOTATIONS).is_file() else sorted(p.parent for p in folder.glob(f"*/{ANNOTATIONS}"))
    if not found:
        raise FileNotFoundError(f"{folder} holds no {ANNOTATIONS}, nor do the folders in it: pass a folder of CO3Dv2")
    return found


def read_sequences(category: Path) -> dict[str, Model]:
    """Name of each sequence -> its cameras, one per frame, in frame order. Image names are relative to the parent
    folder. Raises `ModelError`, naming the file.
    """
    path = category / ANNOTATIONS
    try:
        with gzip.open(path) as file:
            content = file.read(_LARGEST + 1)
        entries = json.loads(content) if len(content) <= _LARGEST else None
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ModelError(f"{path} is damaged: {error}") from error
    if not isinstance(entries, list):
        raise ModelError(f"{path} holds no list of frames")
    frames: dict[str, list[tuple[int, Camera, PosedImage]]] = defaultdict(list)
    for number, entry in enumerate(entries):
        try:
            sequence, frame = str(entry["sequence_name"]), int(entry["frame_number"])
            frames[sequence].append((frame, *_frame(entry, number)))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            what = error if isinstance(error, ModelError) else f"{type(error).__name__}: {error}"
            raise ModelError(f"{path}: frame {number}, {shown(entry)}: {what}") from error
    models = {}
    for sequence, found in frames.items():
        found.sort(key=lambda item: item[0])
        cameras = {image.camera: camera for _, camera, image in found}
        models[sequence] = Model(cameras, [image for _, _, image in found])
    return models


def _frame(entry: Any, number: int) -> tuple[Camera, PosedImage]:
    image, view = entry["image"], entry["viewpoint"]
    height, width = (int(side) for side in image["size"])
    kinds = {"ndc_isotropic": (min(height, width),) * 2, "ndc_norm_image_bounds": (width, height)}
    kind = view.get("intrinsics_format", "ndc_norm_image_bounds")
    if kind not in kinds:
        raise ModelError(f"intrinsics_format is {shown(kind)}; known are {', '.join(kinds)}")
    half = np.array(kinds[kind]) / 2
    focal = np.array(view["focal_length"], dtype=np.float64) * half
    middle = np.array([width, height]) / 2 - np.array(view["principal_point"], dtype=np.float64) * half
    values = np.array([*focal, *middle])
    rotation = torch.tensor(view["R"], dtype=torch.float64)
    translation = torch.tensor(view["T"], dtype=torch.float64)
    if rotation.shape != (3, 3) or translation.shape != (3,) or not np.isfinite(values).all() or min(focal) <= 0:
        raise ModelError("its viewpoint is none")
    extrinsic = torch.cat([_TURN @ rotation.mT, (_TURN @ translation)[:, None]], dim=1)
    name = str(image["path"])
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise ModelError(f"its image {shown(name)} leaves the data set")
    return Camera("PINHOLE", (height, width), values), PosedImage(name, number, extrinsic)
