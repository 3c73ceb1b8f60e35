"""Chooses the images that a network is calibrated with, and their order.

Images of one folder, pattern or tensor belong to one scene. A call sees at most `FRAMES` images of a scene. Calls take
turns between scenes, until there are as many images as requested.

The choice and the order do not depend on the order in which images were given, nor on their names: both follow from
hashes of the contents and the seed, so the same images give the same scales, bit by bit.
"""

import hashlib
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vggt_int8.calibration.observers import CalibrationError
from vggt_int8.images import check_images, find_images, read_images
from vggt_int8.model.call import check_is_tensor, check_range

FRAMES = 10  # of a scene in one call: memory grows with it
_LEAST_SPAN = 4 / 255  # smallest range of a channel's values in an image of more than one color

Frame = Path | Tensor  # a file, or [3, H, W]


@dataclass(frozen=True)
class Scenes:
    """frames: of each scene, in the given order."""

    frames: tuple[tuple[Frame, ...], ...]


Images = str | PathLike[str] | Tensor | Sequence[str | PathLike[str] | Tensor] | Scenes


class Chosen(NamedTuple):
    """frames: of one call, in order.
    key: of their scene.
    """

    key: bytes
    frames: list[Frame]


def find_scenes(images: Images) -> Scenes:
    """The frames of each scene that a user gave; cheap enough to run before a model is loaded.

    images: files, folders or patterns (each folder and each pattern is a scene, single files together are one), tensors
        [S, 3, H, W] or [B, S, 3, H, W] of values in [0, 1], or a list of these.

    Raises what `find_images` and `check_images` raise, `CalibrationError` for images that are NaN or missing, and
    TypeError for anything else.
    """
    if isinstance(images, Scenes):  # looked at already
        return images
    sources = list(images) if isinstance(images, Sequence) and not isinstance(images, str) else [images]
    scenes: list[Sequence[Frame]] = []
    files: list[str | PathLike[str]] = []
    for number, source in enumerate(sources):
        if isinstance(source, Tensor):
            scenes += _scenes_of(source, number)
        elif isinstance(source, str | PathLike) and Path(source).expanduser().is_file():
            files.append(source)
        elif isinstance(source, str | PathLike):
            scenes.append(find_images(source, stacklevel=2))
        else:
            raise TypeError(
                f"calibration images are paths of files or folders, or tensors [S, 3, H, W]; got a "
                f"{type(source).__name__}"
            )
    if files:
        scenes.append(find_images(files, stacklevel=2))
    if not any(scenes):
        raise CalibrationError("no image was given to calibrate with: pass at least one file, folder or tensor")
    check_images([frame for scene in scenes for frame in scene if isinstance(frame, Path)], stacklevel=2)
    return Scenes(tuple(map(tuple, scenes)))


def _scenes_of(images: Tensor, number: int) -> list[Sequence[Frame]]:
    check_is_tensor(images)
    if images.ndim not in (4, 5) or images.shape[-3] != 3 or not images.is_floating_point():
        raise CalibrationError(
            f"calibration images must be floats [S, 3, H, W] or [B, S, 3, H, W] in [0, 1], got {images.dtype} "
            f"{list(images.shape)}"
        )
    if not images.numel():
        raise CalibrationError(f"calibration images {list(images.shape)} are none: pass at least one")
    scenes = images.detach() if images.ndim == 5 else images.detach()[None]
    finite = scenes.flatten(2).isfinite().all(dim=-1)
    if not bool(finite.all()):
        scene, frame = (int(index) for index in (~finite).nonzero()[0])
        raise CalibrationError(f"image {frame} of scene {number + scene} of the calibration images holds NaN or inf")
    check_range(scenes)
    return [scene.unbind() for scene in scenes]


def choose(scenes: Scenes, samples: int, seed: int) -> list[Chosen]:
    """At most `samples` images of these scenes, as calls of at most `FRAMES` images of one scene.

    Warns if there are fewer, and about duplicates, which are used once.
    """
    calls: list[tuple[int, Chosen]] = []
    for keyed in _without_copies(scenes, seed):
        scene_key = hashlib.sha256(b"".join(key for key, _ in keyed)).digest()
        for turn, start in enumerate(range(0, len(keyed), FRAMES)):
            frames = [frame for _, frame in keyed[start : start + FRAMES]]
            calls.append((turn, Chosen(scene_key, frames)))
    calls.sort(key=lambda call: (call[0], call[1].key))
    found, given = sum(len(chosen.frames) for _, chosen in calls), sum(map(len, scenes.frames))
    if found < given:
        warnings.warn(
            f"of {_images(given)} to calibrate with, {given - found} came before: each is seen once", stacklevel=4
        )
    if found < samples:
        warnings.warn(f"calibrated with {_images(found)}, all that there are, not with {samples}", stacklevel=4)
    taken: list[Chosen] = []
    left = samples
    for _, (key, frames) in calls:
        if left > 0:
            taken.append(Chosen(key, frames[:left]))
            left -= len(frames)
    return taken


def _without_copies(scenes: Scenes, seed: int) -> list[list[tuple[bytes, Frame]]]:
    """The images of each scene with their keys, in ascending order, without duplicates. An image in two scenes, such as
    a folder and a pattern that matches it, stays in the scene that is first in that order, so that the given order does
    not matter.
    """
    keyed = [sorted(((_key(f, seed), f) for f in scene), key=lambda pair: pair[0]) for scene in scenes.frames]
    keyed.sort(key=lambda scene: [key for key, _ in scene])
    seen: set[bytes] = set()
    left: list[list[tuple[bytes, Frame]]] = []
    for scene in keyed:
        own = {key: frame for key, frame in scene if key not in seen}
        seen |= own.keys()
        if own:
            left.append(list(own.items()))
    return left


def _images(number: int) -> str:
    return f"{number} image" if number == 1 else f"{number} images"


def read(chosen: Chosen, model: Any) -> Tensor:
    """The images of a call, [S, 3, H, W] fp32 on the CPU; files are read at the size for `model`."""
    paths = [frame for frame in chosen.frames if isinstance(frame, Path)]
    if paths:
        return read_images(paths, model=model)[0]
    return torch.stack([frame for frame in chosen.frames if isinstance(frame, Tensor)]).float().cpu()


def check_contents(images: Sequence[Tensor]) -> None:
    """Raise `CalibrationError` if every image has a single color, such as black; warn if some do. images: of each call,
    [S, 3, H, W].
    """
    spans = [(frame.amax(dim=(1, 2)) - frame.amin(dim=(1, 2))).max().item() for call in images for frame in call]
    if not (empty := sum(span < _LEAST_SPAN for span in spans)):
        return
    if empty == len(spans):
        all_are = "the only calibration image is" if empty == 1 else f"all {empty} calibration images are"
        raise CalibrationError(
            f"{all_are} of one colour, such as black, so ranges would not be those of pictures: calibrate with "
            "photographs of scenes"
        )
    some_are = f"{empty} of {len(spans)} calibration images are of one colour, such as black"
    warnings.warn(f"{some_are}, and show nothing of the ranges of pictures: leave them out", stacklevel=4)


def choose_inputs(inputs: Any, samples: int, seed: int) -> list[Tensor]:
    """The same for any module: each tensor is the input of one call."""
    tensors = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(
                "a module that is no network of this package is calibrated with tensors, one for each call of it; got "
                f"a {type(tensor).__name__}"
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CalibrationError(f"an input {list(tensor.shape)} to calibrate with holds NaN or inf")
    return sorted(tensors, key=lambda tensor: _key(tensor, seed))[:samples]


def content_hash(image: Tensor) -> str:
    """sha256 of a tensor's shape and values, as fp32, in hexadecimal."""
    return _digest(image).hex()


def _key(frame: Frame, seed: int) -> bytes:
    if isinstance(frame, Path):
        with frame.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
    else:
        content = _digest(frame)
    return hashlib.sha256(struct.pack("<q", seed) + content).digest()


def _digest(tensor: Tensor) -> bytes:
    values = tensor.detach().float().cpu().contiguous()
    return hashlib.sha256(str(list(values.shape)).encode() + values.numpy().tobytes()).digest()
