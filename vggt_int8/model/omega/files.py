"""Public weights of VGGT-Ω: one file without a config."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vggt_int8.model.keywords import HUB_KEYWORDS, check_keywords
from vggt_int8.model.omega.config import VGGTOmegaConfig
from vggt_int8.saves.pickles import load_pickle
from vggt_int8.saves.plain_files import check_header, opened


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
        config = VGGTOmegaConfig(
            **{enable: part in parts for part, enable in VGGTOmegaConfig.head_fields.items()} | fields
        )
    elif not isinstance(config, VGGTOmegaConfig) or fields:
        raise TypeError(f"config= is a {type(config).__name__}; pass a VGGTOmegaConfig, and change fields in it")
    return {name: value for name, value in options.items() if name not in HUB_KEYWORDS} | {"config": config}, tensors


def _load_safetensors(path: str) -> dict[str, Tensor]:
    with opened(path) as file:
        check_header(path)
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
