"""Pickled state dicts (`.pt`, `.pth`, `.bin`, `.ckpt`): tensors alone, where a training program put them.

Objects in a pickle can run code when they are opened, so PyTorch's reader for weights alone opens it, or nothing does.
"""

import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vggt_int8.pretrained.errors import CheckpointError
from vggt_int8.pretrained.plain_files import check_plain_file

# Where training programs put the state dict beside other things: Lightning, scripts, DeepSpeed.
_WRAPS = ("state_dict", "model_state_dict", "model", "module")


def load_pickle(file: str) -> dict[str, Tensor]:
    """The tensors of a file, memory-mapped where it can be; of one level of {"state_dict": ...} or {"model": ...}.

    Raises `CheckpointError` for a file that is not there or not readable, and for one that holds anything else.
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
        return dict(content[found[0]])
    if found:
        listed = " and ".join(repr(key) for key in found)
        raise CheckpointError(f"{file} holds state dicts under {listed}: save the one that is meant by itself")
    odd = next((key for key, value in content.items() if not isinstance(value, Tensor)), None)
    what = "is empty" if odd is None else f"has a {type(content[odd]).__name__} under {odd!r:.60}"
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


def _open(file: str) -> Any:
    check_plain_file(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # zip, pickle and torch's reader raise errors of many kinds on a damaged file
        if isinstance(error, pickle.UnpicklingError) and "Unsupported" in str(error):
            raise CheckpointError(
                f"{file} cannot be read as plain tensors (it holds other objects). Pickled models can run code when "
                "opened, so they are refused: save `model.state_dict()` instead, best as safetensors"
            ) from error
        raise CheckpointError(
            f"{file} cannot be read as plain tensors ({type(error).__name__}): it is truncated, damaged or no file of "
            "PyTorch; download or make it again, best as safetensors"
        ) from error
