"""Moves a finished save to its destination, such that the previous content stays whole until then."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.quantizers.base import HfQuantizer

from vggt_int8.files import staged_folder, sync, undo_exchange
from vggt_int8.plain_data import check_integer
from vggt_int8.saves.errors import CheckpointError
from vggt_int8.saves.save_id import KEY, NO_ID, stamp

_SAVED = re.compile(r"config\.json|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")


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
    new: set[str] = set()

    def entries() -> list[str]:
        """The last is the first to go and the last to come; another save may have brought other shards meanwhile."""
        return [*sorted((old_files(target) | new) - {"config.json"}), "config.json"]

    with staged_folder(target, entries=entries, overwrite=True, owned=lambda _: entries()) as staging:
        yield staging
        stamp(staging)
        mode = (staging / "config.json").stat().st_mode  # that of any new file; safetensors lets only the owner read
        new |= {path.name for path in staging.iterdir()}
        for name in new:
            (staging / name).chmod(mode)
    sync(target)


# What `push_to_hub` takes as well.
_PUSH = ("commit_message", "commit_description", "private", "revision", "create_pr", "tags")
# Options of other times and formats, and the values that ask for what happens anyway.
_ONLY: dict[str, tuple[Any, ...]] = {
    "safe_serialization": (None, True),
    "save_original_format": (True,),
    "save_peft_format": (True,),
    "distributed_checkpoint": (False,),
}
_TAKEN = (
    "save_function",  # accelerate's loops pass one; safetensors are written by their own library
    "max_shard_size",
    "state_dict",
    "is_main_process",
    "variant",
    "push_to_hub",
    "repo_id",
    "token",
    *_PUSH,
)


def check_saving(
    model: PreTrainedModel, target: Path, keywords: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Options of `save_pretrained` for transformers, and those of the `push_to_hub` that is to follow, if any.

    Raises `CheckpointError` for what no folder of one save can be, TypeError for options that would have no effect.
    """
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target} is a file; save_pretrained needs a folder")
    if variant := keywords.get("variant"):
        raise CheckpointError(
            f"variant={variant!r} would share one config.json with other weights: save to a folder of its own"
        )
    for name, value in keywords.items():
        if name not in _TAKEN and not any(value is only for only in _ONLY.get(name, ())):
            hint = (
                f"it takes {', '.join(sorted(_TAKEN))}"
                if name not in _ONLY
                else "a save is safetensors and config.json"
            )
            raise TypeError(f"save_pretrained does not take {name}={value!s:.60}: {hint}")
    options = {name: keywords[name] for name in ("max_shard_size", "state_dict") if name in keywords}
    if not isinstance(options.get("max_shard_size", ""), str):
        check_integer("max_shard_size", options["max_shard_size"], ' of bytes, or text like "5GB"')
    if options.get("state_dict") is not None and getattr(model, "hf_quantizer", None) is not None:
        raise TypeError(
            "save_pretrained does not take state_dict= of a quantized model, which is saved as it is: change it by "
            "load_state_dict() first"
        )
    if not keywords.get("push_to_hub"):
        if astray := [name for name in ("repo_id", *_PUSH) if keywords.get(name)]:
            raise TypeError(f"save_pretrained takes {', '.join(astray)} with push_to_hub=True alone")
        return options, None
    push = {name: keywords[name] for name in ("token", "max_shard_size", *_PUSH) if keywords.get(name) is not None}
    return options, {"repo_id": keywords.get("repo_id") or target.name, **push}


def old_files(target: Path) -> set[str]:
    """Names of the files in a folder that a save replaces or removes."""
    return {path.name for path in target.glob("*") if _SAVED.fullmatch(path.name)}


def restore(folder: Path) -> None:
    """Before a load: put a checkpoint back whose save was killed between two renames, which has no config.json.

    A folder that has one is not touched, and nothing is ever removed. Raises `CheckpointError` if a save is going on,
    or if it cannot be put back.
    """
    if os.path.lexists(folder / "config.json") or not folder.is_dir():
        return
    try:
        others = undo_exchange(folder)
    except OSError as error:
        raise CheckpointError(
            f"a save into {folder} was cut short, and it cannot be put back: {error.strerror}: {error.filename}"
        ) from error
    if others and not os.path.lexists(folder / "config.json"):
        raise CheckpointError(
            f"there is no config.json in {str(folder)!r} but {others[0].name}, of a save that is going on (try again), "
            f"or that was cut short elsewhere or by another user: what it replaced is in {others[0] / 'old'}"
        )


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
