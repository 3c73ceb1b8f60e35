"""Pickled state dicts (`.pt`, `.pth`, `.bin`, `.ckpt`): tensors only, wherever a training program put them.

Objects in a pickle can run code when they are loaded, so it is opened with PyTorch's `weights_only` reader or not at
all.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vggt_int8.listing import first_few
from vggt_int8.placeholders import LOOKED_AT, placeholder
from vggt_int8.saves.errors import CheckpointError
from vggt_int8.saves.plain_files import check_plain_file

# Where training programs nest the state dict: Lightning, scripts, DeepSpeed.
_WRAPS = ("state_dict", "model_state_dict", "model", "module")
# What PyTorch's reader says of objects that it does not make; "Unsupported operand" alone is damage.
_OTHER_OBJECTS = re.compile(r"GLOBAL|unrecognized function|Can only|unsupported (?:class|persistent)", re.IGNORECASE)


def load_pickle(file: str) -> dict[str, Tensor]:
    """The tensors of a file, memory-mapped if possible; also from one level of {"state_dict": ...} or {"model": ...}.

    Raises `CheckpointError` for a file that is missing or not readable, and for one that holds anything else.
    """
    content = _open(file)
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{file} holds no state dict but a {type(content).__name__}: a dict from name to tensor is expected"
        )
    if _is_state_dict(content):
        return dict(content)
    found = [key for key in _WRAPS if key in content and _is_state_dict(content[key])]
    if len(found) == 1:
        state = content[found[0]]
        if alike := [key for key, value in content.items() if key != found[0] and _same_names(value, state)]:
            warnings.warn(
                f"{file}: the state dict under {found[0]!r} is loaded; under {first_few(alike, spell=repr)} there "
                "is another of the same tensors, such as averaged weights: save that by itself to load it",
                stacklevel=2,
            )
        return dict(state)
    if found:
        listed = " and ".join(repr(key) for key in found)
        raise CheckpointError(f"{file} holds state dicts under {listed}: save the one that is meant by itself")
    odd = [key for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    what = f"has a {type(content[odd[0]]).__name__} under {odd[0]!r:.60}" if odd else "is empty"
    raise CheckpointError(
        f"{file} holds no state dict ({what}): a dict from name to tensor is expected, by itself or under "
        f"{', '.join(repr(key) for key in _WRAPS)}"
    )


def is_wrapped(file: str) -> bool:
    """Whether the state dict of a file stands one level down."""
    content = _open(file)
    return isinstance(content, Mapping) and not _is_state_dict(content)


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )


def _same_names(content: Any, state: Mapping[str, Tensor]) -> bool:
    return _is_state_dict(content) and content.keys() == state.keys()


def _is_other_zip(file: str) -> bool:
    """Whether a file is a sound zip archive without what torch.save puts into one."""
    try:
        with zipfile.ZipFile(file) as archive:
            return not any(name.endswith("data.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _open(file: str) -> Any:
    check_plain_file(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # zip, pickle and torch's reader raise errors of many kinds on a damaged file
        if isinstance(error, pickle.UnpicklingError) and _OTHER_OBJECTS.search(str(error)):
            raise CheckpointError(
                f"{file} cannot be read as plain tensors (it holds other objects). Pickled models can run code when "
                "opened, so they are refused: save `model.state_dict()` instead, best as safetensors"
            ) from error
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{file} is a program of TorchScript, which is not run: save `model.state_dict()` instead, best as "
                "safetensors"
            ) from error
        with open(file, "rb") as handle:
            instead = placeholder(handle.read(LOOKED_AT), "file")
        if instead:
            raise CheckpointError(f"{file} is {instead}") from error
        if _is_other_zip(file):
            raise CheckpointError(
                f"{file} is a zip archive, but none that torch.save wrote: unpack it and pass the file of tensors"
            ) from error
        raise CheckpointError(
            f"{file} cannot be read as plain tensors ({type(error).__name__}): it is truncated, damaged or no file of "
            "PyTorch; download or make it again, best as safetensors"
        ) from error
