"""Maps tensor names as training programs leave them to the network's own.

`nn.DataParallel` and DDP prefix every name with "module.", `torch.compile` those of the compiled module with
"_orig_mod.", and Lightning with the attribute that holds the network. Whatever precedes "aggregator." and the heads is
removed if it is the same for all of them.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from vggt_int8.model.configs import CONFIGS
from vggt_int8.plain_data import shown
from vggt_int8.pretrained.checkpoint import read_headers
from vggt_int8.saves.errors import CheckpointError
from vggt_int8.saves.pickles import is_wrapped, load_pickle

_PARTS = {"aggregator"}.union(*(kind.head_fields for kind in CONFIGS.values()))
# Components of a name that wrappers insert anywhere: torch.compile, activation checkpointing and FSDP.
_WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Stored name -> name in the network. Raises `CheckpointError` if the prefix is ambiguous."""
    names = list(names)
    unwrapped = {name: ".".join(step for step in name.split(".") if step not in _WRAPPERS) for name in names}
    prefixes: dict[str, int] = {}
    for name in unwrapped.values():
        if (prefix := _prefix(name)) is not None:
            prefixes[prefix] = prefixes.get(prefix, 0) + 1
    if prefixes.keys() <= {""}:
        plain = unwrapped
    elif len(prefixes) > 1:
        counts = ", ".join(f"{count} below {shown(prefix)}" for prefix, count in sorted(prefixes.items()))
        raise CheckpointError(f"the weights hold more than one network ({counts}): keep the tensors of one of them")
    else:
        (prefix,) = prefixes
        others = [name for name in names if not unwrapped[name].startswith(prefix)]
        if others:
            raise CheckpointError(
                f"the network's tensors stand below {shown(prefix)}, but there are others, such as {shown(others[0])} "
                f"({len(others)} in all): keep those below {shown(prefix)} alone"
            )
        plain = {name: short.removeprefix(prefix) for name, short in unwrapped.items()}
    seen: dict[str, str] = {}
    for name, short in plain.items():
        if short in seen:
            one, other, both = (shown(each, 200) for each in (seen[short], name, short))
            raise CheckpointError(f"{one} and {other} are both the network's {both}: keep one of them")
        seen[short] = name
    return plain


def _prefix(name: str) -> str | None:
    """What precedes the first part of the network in a name, such as "model.module."; None if the name has no such
    part.
    """
    steps = name.split(".")
    for index, step in enumerate(steps):
        if step in _PARTS:
            return "".join(f"{before}." for before in steps[:index])
    return None


def with_plain_names(
    state_dict: Mapping[str, Any] | None, files: list[str] | None
) -> tuple[dict[str, Any] | None, list[str] | None]:
    """State dict and files for transformers to load; unchanged if their names are already the network's own.

    Otherwise the tensors under their plain names, memory-mapped if possible, and no files. Raises `CheckpointError` as
    `plain_names` does.
    """
    if state_dict is not None:
        plain = plain_names(state_dict)
        return {plain[name]: tensor for name, tensor in state_dict.items()}, files
    files = files or []
    plain = plain_names(read_headers(files))
    if all(name == short for name, short in plain.items()) and not any(_is_wrapped(file) for file in files):
        return None, files
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= {plain[name]: tensor for name, tensor in load_tensors(file).items()}
    return tensors, None


def _is_wrapped(file: str) -> bool:
    """Whether a pickle holds its tensors one level down, where transformers does not look."""
    return not file.endswith(".safetensors") and is_wrapped(file)


def load_tensors(file: str) -> dict[str, Tensor]:
    """The tensors of one file, memory-mapped if its type allows. Raises `CheckpointError`."""
    if Path(file).suffix != ".safetensors":
        return load_pickle(file)
    read_headers([file])
    with safe_open(file, framework="pt") as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  (not a mapping)
