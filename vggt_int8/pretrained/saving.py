"""Put a finished save in its place, so that what was there before is whole until then."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.quantizers.base import HfQuantizer

from vggt_int8.files import staged_folder
from vggt_int8.pretrained.errors import CheckpointError
from vggt_int8.pretrained.save_id import KEY, NO_ID, stamp

_WEIGHT_FILES = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")


@contextmanager
def saved_whole(target: Path) -> Iterator[Path]:
    """A folder to save into; its files, with the id of this save, take their places in `target` when the block ends.

    A new `target` appears with one rename. In an existing one, config.json goes first and comes last, and the files
    around it are exchanged by renames alone: after a kill it holds the old checkpoint, the new one, or one without a
    config.json, which loads nowhere and which the next save or load puts back to the old one. Other files stay.
    After an error it holds what it held before. Raises FileExistsError if `target` is a file, `CheckpointError`
    if what it would replace is a link.
    """
    for name in old_files(target):
        if (target / name).is_symlink():
            raise CheckpointError(f"{target / name} is a link, which a save would not follow: save to another folder")
    entries = ["config.json"]  # the last is the first to go and the last to come; the others are known at the end
    with staged_folder(target, entries=entries, overwrite=True, owned=lambda _: entries) as staging:
        yield staging
        stamp(staging)
        mode = (staging / "config.json").stat().st_mode  # that of any new file; safetensors lets only the owner read
        new = {path.name for path in staging.iterdir()}
        for name in new:
            (staging / name).chmod(mode)
        entries[:] = [*sorted((old_files(target) | new) - {"config.json"}), "config.json"]
    _sync(target)


def old_files(target: Path) -> set[str]:
    """Names of the files in a folder that a save replaces or removes."""
    return {path.name for pattern in ("config.json", *_WEIGHT_FILES) for path in target.glob(pattern)}


@contextmanager
def headers_with_id(model: PreTrainedModel, state_dict: dict[str, Tensor] | None) -> Iterator[None]:
    """While the block runs, transformers' `save_pretrained` leaves room for an id in the headers that it writes."""
    quantizer = getattr(model, "hf_quantizer", None)
    model.hf_quantizer = _Headers(quantizer, state_dict)
    try:
        yield
    finally:
        if quantizer is None:
            del model.hf_quantizer
        else:
            model.hf_quantizer = quantizer


class _Headers(HfQuantizer):
    """What transformers asks for the tensors and the header of a save; nothing else of it is used."""

    def __init__(self, quantizer: HfQuantizer | None, state_dict: dict[str, Tensor] | None) -> None:
        self._quantizer, self._state_dict = quantizer, state_dict

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor] | None, dict[str, Any]]:
        if self._quantizer is None:
            return self._state_dict, {KEY: NO_ID}
        state_dict, metadata = self._quantizer.get_state_dict_and_metadata(model)
        return state_dict, {**metadata, KEY: NO_ID}

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def _sync(folder: Path) -> None:
    """The renames in a folder, onto the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
