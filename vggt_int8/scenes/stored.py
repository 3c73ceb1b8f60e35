"""Scenes on disk: PNG images, depth as 16-bit PNG, cameras as JSON; some are shipped with the package.

A scene is a folder:

    scene.json         conventions, origin of the scene, and per view its files, extrinsic and intrinsic
    image_0.png ...    8-bit RGB
    depth_0.png ...    16-bit gray; depth = code x `depth_unit` of scene.json, 0 where it is unknown

The deepest pixel has the largest code, so the error of a depth is at most max / 131070. Cameras are stored with all
bits of their fp32 values. `vggt-int8 scenes bundle` writes the shipped ones, `vggt-int8 scenes render` any other.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vggt_int8.disk import check_place
from vggt_int8.files import staged_folder
from vggt_int8.plain_data import shown
from vggt_int8.scenes.render import GENERATOR_VERSION, SceneBatch, render_scenes
from vggt_int8.scenes.seeds import scene_seeds

BUNDLED_FOLDER = Path(__file__).parent.parent / "assets" / "scenes"
# Name -> index in the split "demo": a walk through a room, an orbit around a table, a table from far-apart places.
BUNDLED_INDICES = {"room": 27, "table": 17, "wide_baselines": 19}
BUNDLED_VIEWS, BUNDLED_SIZE = 8, (112, 112)

FORMAT_VERSION = 1
MAX_CODE = 65535
CONVENTION = {
    "axes": "OpenCV: x right, y down, z forward",
    "extrinsic": "3x4 [R | t], camera from world: x_camera = R x_world + t; the world is the first view's camera",
    "intrinsic": "3x3 in pixels; the pixel of column u and row v is centred on (u, v)",
    "depth": "along the camera's z axis, at pixel centres: code x depth_unit; 0 is unknown",
    "scale": "lengths are divided by the mean distance of all points from the first camera, metres_per_unit",
}


@dataclass
class StoredScene:
    """One scene of S views of H x W pixels. All floats are fp32, lengths in normalized units."""

    images: Tensor  # [S, 3, H, W] in [0, 1]
    depth: Tensor  # [S, H, W] along the camera's z axis; 0 where it is unknown
    extrinsic: Tensor  # [S, 3, 4] camera from world; the first is the identity
    intrinsic: Tensor  # [S, 3, 3] pixels
    metres_per_unit: float
    origin: dict[str, Any] = field(default_factory=dict)  # split, index, seed, generator version, ...

    @property
    def valid(self) -> Tensor:
        """[S, H, W] bool: the depth is known."""
        return self.depth > 0


def available_scenes() -> list[str]:
    """Names of the scenes that ship with the package, sorted."""
    return sorted(path.parent.name for path in BUNDLED_FOLDER.glob("*/scene.json"))


def load_scene(scene: str | PathLike[str]) -> StoredScene:
    """Read a shipped scene by its name, or any folder that `save_scene` wrote.

    Raises FileNotFoundError that lists the shipped names, or ValueError, naming the file, for corrupted files, an
    unsupported format, and images of different sizes.
    """
    folder = BUNDLED_FOLDER / scene if str(scene) in available_scenes() else Path(scene).expanduser()
    path = folder / "scene.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: pass the folder of a scene, or a shipped one: {', '.join(available_scenes())}"
        )
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {shown(str(error))}") from error
    found = facts.get("format_version") if isinstance(facts, dict) else None
    if found != FORMAT_VERSION:
        raise ValueError(f"{path}: format_version {shown(found)}; this version reads {FORMAT_VERSION}")
    try:
        return _load(folder, facts)
    except KeyError as error:
        raise ValueError(f"{path} is incomplete: it has no {error}") from error
    except _FactError as error:
        raise ValueError(f"{path}: {error}") from error


class _FactError(ValueError):
    """A value of scene.json that is none."""


def _load(folder: Path, facts: dict[str, Any]) -> StoredScene:
    views, size = facts["views"], (facts["height"], facts["width"])
    if not isinstance(views, list) or not views or not all(isinstance(view, dict) for view in views):
        raise _FactError(f"views is {shown(views)}, not a list of views")
    if not all(type(side) is int and side > 0 for side in size):
        raise _FactError(f"height and width are {shown(size)}, not pixels")
    if not isinstance(facts["origin"], dict):
        raise _FactError(f"origin is {shown(facts['origin'])}, not a table")
    metres, unit = (_positive(name, facts[name]) for name in ("metres_per_unit", "depth_unit"))
    extrinsic, intrinsic = _matrices(views, "extrinsic", (3, 4)), _matrices(views, "intrinsic", (3, 3))
    images = np.stack([_read(folder / _file_name(view, "image"), size, "RGB") for view in views])
    codes = np.stack([_read(folder / _file_name(view, "depth"), size, "I;16") for view in views])
    return StoredScene(
        images=torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255,
        depth=torch.from_numpy(codes.astype(np.float64) * unit).float(),
        extrinsic=extrinsic,
        intrinsic=intrinsic,
        metres_per_unit=metres,
        origin=facts["origin"],
    )


def _positive(name: str, value: Any) -> float:
    """A length. Times `MAX_CODE` it must still be a number in fp32, and above zero."""
    if type(value) not in (int, float) or not 1e-30 < value < 1e30:
        raise _FactError(f"{name} is {shown(value)}, not a length")
    return float(value)


def _matrices(views: list[dict[str, Any]], name: str, shape: tuple[int, int]) -> Tensor:
    """[S, *shape] fp32. Rotations are rotations, and focal lengths positive: else nothing that is computed holds."""
    for index, view in enumerate(views):
        rows = view[name]
        whole = isinstance(rows, list) and [len(row) for row in rows if isinstance(row, list)] == [shape[1]] * shape[0]
        if not whole or len(rows) != shape[0] or not all(_is_number(value) for row in rows for value in row):
            raise _FactError(f"{name} of view {index} is {shown(rows)}, not {shape[0]} x {shape[1]} numbers")
    matrices = torch.tensor([view[name] for view in views], dtype=torch.float32)
    for index, matrix in enumerate(matrices):
        if name == "extrinsic":
            rotation = matrix[:, :3].double()
            sound = (rotation @ rotation.T - torch.eye(3)).abs().max() < 1e-3 and rotation.det() > 0
        else:
            upright = matrix[0, 1] == 0 and matrix[1, 0] == 0  # no skew: nothing that reads them would turn by it
            sound = matrix[0, 0] > 0 and matrix[1, 1] > 0 and upright and matrix[2].tolist() == [0.0, 0.0, 1.0]
        if not sound:
            raise _FactError(f"{name} of view {index} is {shown(views[index][name])}, which no camera has")
    return matrices


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30  # NaN is not less, either


def _file_name(view: dict[str, Any], key: str) -> str:
    """A file of the scene's own folder."""
    name = view[key]
    if not isinstance(name, str) or not name.isprintable() or name != Path(name).name or name in ("", ".."):
        raise _FactError(f"{key} is {shown(name)}, which is no file of its folder")
    return name


def save_scene(folder: str | PathLike[str], batch: SceneBatch, origin: Mapping[str, Any]) -> None:
    """Write the only scene of `batch`, completely or not at all. An existing stored scene is replaced.

    origin: JSON-ready facts to store.

    Raises FileExistsError if `folder` is something else than a stored scene, and ValueError if the batch has several
    scenes.
    """
    folder = Path(folder).expanduser()
    if len(batch.images) != 1:
        raise ValueError(f"the batch holds {len(batch.images)} scenes; store them one by one")
    _check_place(folder)
    old = _files_of(folder) if folder.exists() else []
    views = [name for index in range(batch.images.shape[1]) for name in _names(index).values()]
    entries = [*dict.fromkeys([*old, *views, "scene.json"]).keys() - {"scene.json"}, "scene.json"]
    with staged_folder(folder, entries=entries, overwrite=True, owned=_files_of) as staging:
        _write(staging, batch.to("cpu"), origin)


_NAME = r"(image|depth)_[0-9]{1,9}\.png"


def _check_place(folder: Path) -> None:
    """Raise OSError, naming it, if no scene can be stored in `folder`."""
    check_place(folder)
    if folder.exists() and not (folder / "scene.json").is_file():
        raise FileExistsError(f"{folder} exists and is no stored scene: choose another name")


def _names(index: int) -> dict[str, str]:
    """The files of a view."""
    return {"image": f"image_{index}.png", "depth": f"depth_{index}.png"}


def _files_of(folder: Path) -> list[str]:
    """What a stored scene consists of. Raises ValueError if its scene.json is damaged, or lists other files."""
    path = folder / "scene.json"
    try:
        views = json.loads(path.read_text(encoding="utf-8"))["views"]
        listed = [view[key] for view in views for key in ("image", "depth")]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, so that nothing is replaced: {shown(error)}") from error
    if others := [name for name in listed if not isinstance(name, str) or not re.fullmatch(_NAME, name)]:
        raise ValueError(f"{path} lists {shown(others[0])}, which no scene consists of, so that nothing is replaced")
    return [*listed, "scene.json"]


def render_scene(split: str, index: int, views: int, size: Sequence[int], *, supersample: int = 2) -> SceneBatch:
    """One scene as a batch, on the CPU."""
    height, width = size
    return render_scenes(scene_seeds(split, [index]), views, (height, width), supersample=supersample)


def store_rendered(
    folder: str | PathLike[str], split: str, index: int, views: int, size: Sequence[int], *, supersample: int = 2
) -> None:
    """Render a scene and write it; what was rendered stands in its `origin`."""
    folder = Path(folder).expanduser()
    _check_place(folder)  # before minutes of rendering
    batch = render_scene(split, index, views, size, supersample=supersample)
    seed = int(scene_seeds(split, [index]))
    origin = {"split": split, "index": index, "seed": seed, "supersample": supersample}
    save_scene(folder, batch, {**origin, "generator_version": GENERATOR_VERSION})


def store_bundled(folder: str | PathLike[str] = BUNDLED_FOLDER) -> list[str]:
    """Write the scenes that ship with the package into `folder`; returns their names."""
    for name, index in BUNDLED_INDICES.items():
        store_rendered(Path(folder) / name, "demo", index, BUNDLED_VIEWS, BUNDLED_SIZE)
    return list(BUNDLED_INDICES)


def _write(folder: Path, batch: SceneBatch, origin: Mapping[str, Any]) -> None:
    depth = torch.where(batch.valid, batch.depth, 0)[0].double()
    unit = depth.max().item() / MAX_CODE
    codes = (depth / unit).round().numpy().astype(np.uint16)
    pixels = (batch.images[0].permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    views = []
    for index, (picture, code) in enumerate(zip(pixels, codes, strict=True)):
        view = _names(index)
        Image.fromarray(picture).save(folder / view["image"], optimize=True)
        Image.fromarray(code).save(folder / view["depth"], optimize=True)
        cameras = {"extrinsic": batch.extrinsic[0, index].tolist(), "intrinsic": batch.intrinsic[0, index].tolist()}
        views.append({**view, **cameras})
    facts = {
        "format_version": FORMAT_VERSION,
        "origin": dict(origin),
        "convention": CONVENTION,
        "height": pixels.shape[1],
        "width": pixels.shape[2],
        "depth_unit": unit,
        "metres_per_unit": batch.metres_per_unit.item(),
        "views": views,
    }
    (folder / "scene.json").write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _read(path: Path, size: tuple[int, int], mode: str) -> np.ndarray[Any, Any]:
    """The pixels of a PNG file, checked. Raises ValueError, naming it; FileNotFoundError if there is none."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode != mode or (image.height, image.width) != size:
                raise _FactError(
                    f"{path.name} is {image.height} x {image.width} in mode {image.mode}, not {size[0]} x {size[1]} in "
                    f"{mode}"
                )
            return np.array(image)
    except (FileNotFoundError, _FactError):
        raise
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on damage
        raise ValueError(f"{path} is damaged: {error}") from error
