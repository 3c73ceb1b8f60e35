"""Public weights of VGGT-Ω: one file without a config, on disk or in a repository of the Hub."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.utils import cached_file

from vggt_int8.model.keywords import HUB_KEYWORDS, check_keywords
from vggt_int8.model.omega.config import VGGTOmegaConfig
from vggt_int8.saves.errors import CheckpointError
from vggt_int8.saves.names import check_source
from vggt_int8.saves.pickles import load_pickle
from vggt_int8.saves.plain_files import SINGLE_FILES, check_header, check_plain_file, opened

HEAD_OF_PART = {"camera_head": "enable_camera", "dense_head": "enable_depth", "text_alignment_head": "enable_text"}


def is_weight_file(source: str) -> bool:
    """Whether a source is a file on disk, as its name or what is there says."""
    return source.endswith(SINGLE_FILES) or os.path.isfile(source)


def weight_file(source: str, filename: str | None, keywords: Mapping[str, Any]) -> str:
    """Path of a file of weights: `source` itself, or `filename` in a folder or Hub repository of that name.

    Raises `CheckpointError` where there is none, TypeError for a keyword that would choose another.
    """
    for name in ("variant", *(("subfolder",) if filename is None else ())):
        if keywords.get(name):
            raise TypeError(f"{name}={keywords[name]!r:.60} chooses among files, but one is named")
    if filename is None:
        path = Path(source)
    elif Path(source).is_dir():
        path = Path(source) / (keywords.get("subfolder") or "") / filename
    else:
        if is_weight_file(source):
            raise CheckpointError(f"{source!r} is a file: leave out filename={filename!r:.60}")
        check_source(source, keywords, filename)
        hub = {name: keywords[name] for name in HUB_KEYWORDS if name in keywords}
        try:
            path = Path(str(cached_file(source, filename, **hub)))
        except OSError as error:
            raise CheckpointError(f"cannot get {filename!r} of {source!r}: {' '.join(str(error).split())}") from error
    check_plain_file(path)
    if not str(path).endswith(SINGLE_FILES):
        raise CheckpointError(f"{path} is a file of unknown kind; known are {', '.join(SINGLE_FILES)}")
    return str(path)


def read_weights(path: str, keywords: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `from_pretrained` hands on, with a config, and the tensors of a file, memory-mapped where its kind allows.

    The config is `config=`, or made of fields among the keywords, the heads that the file has, and defaults. Raises
    `CheckpointError` for a file that is not readable, ValueError or TypeError for sizes that no such network has.
    """
    options = check_keywords(keywords, VGGTOmegaConfig, own=("filename",))
    tensors = load_pickle(path) if not path.endswith(".safetensors") else _load_safetensors(path)
    fields = {name: options.pop(name) for name in VGGTOmegaConfig.__annotations__ if name in options}
    config = options.get("config")
    if config is None:
        parts = {name.split(".", 1)[0] for name in tensors}
        config = VGGTOmegaConfig(**{enable: part in parts for part, enable in HEAD_OF_PART.items()} | fields)
    elif not isinstance(config, VGGTOmegaConfig) or fields:
        raise TypeError(f"config= is a {type(config).__name__}; pass a VGGTOmegaConfig, and change fields in it")
    return {name: value for name, value in options.items() if name not in HUB_KEYWORDS} | {"config": config}, tensors


def _load_safetensors(path: str) -> dict[str, Tensor]:
    with opened(path) as file:
        check_header(path)
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
