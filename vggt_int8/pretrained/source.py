"""What a user names as the source of a model: its config, its recipe, the device it is asked for, a single file."""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file as load_safetensors
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from vggt_int8.model.config import VGGTConfig
from vggt_int8.pretrained.checkpoint import CheckpointError, load_pickle, read_headers
from vggt_int8.pretrained.quantizer import QUANT_METHOD, VGGTInt8QuantizationConfig, execution_device_type
from vggt_int8.quant.backends import BackendError
from vggt_int8.recipe import Recipe, load_recipe

_SINGLE_FILES = (".pt", ".pth", ".bin", ".safetensors")


def load_config(source: str, kwargs: dict[str, Any]) -> VGGTConfig:
    """The config of a folder or Hub id; `kwargs` are those of `from_pretrained`. Raises `CheckpointError`.

    Fields of the config among `kwargs`, such as `enable_track=False`, are taken out of them and replace what the
    checkpoint says, as everywhere in transformers.
    """
    if not Path(source).is_dir() and (source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise CheckpointError(
            f"there is no folder {source!r}; pass an existing folder or a Hub id such as 'owner/name'"
        )
    folder = Path(source) / kwargs.get("subfolder", "")
    if Path(source).is_dir() and not (folder / "config.json").is_file():
        raise CheckpointError(f"there is no config.json in {str(folder)!r}: a checkpoint needs one beside its weights")
    hub = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")
    options = {key: kwargs[key] for key in hub if key in kwargs}
    options |= {key: kwargs.pop(key) for key in VGGTConfig.__annotations__ if key in kwargs}
    try:
        config = VGGTConfig.from_pretrained(source, **options)
        config.validate()  # once more: the options are set after the first time
    except (StrictDataclassError, TypeError, AttributeError) as error:  # the latter: not an object, no such dtype
        raise CheckpointError(f"the config.json of {source!r} describes no VGGT: {error}") from error
    except OSError as error:
        if Path(source).is_dir():
            raise CheckpointError(f"cannot read the config.json in {source!r}: {error}") from error
        raise CheckpointError(
            f"cannot get the config.json of {source!r}: {error}\nIt is neither a folder here nor in the cache, and the "
            "Hub did not give it. Check the name and the network, or download the files and pass their folder."
        ) from error
    return config


def check_index(source: str, subfolder: str) -> None:
    """Raise `CheckpointError` if the list of shards in a folder, where there is one, is not such a list."""
    index = Path(source) / subfolder / SAFE_WEIGHTS_INDEX_NAME
    if not index.is_file():
        return
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{index} is no valid JSON: {error}") from error
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(file, str) for file in shards.values()) or not shards:
        raise CheckpointError(f"{index} has no weight_map from tensor to file: download or make the checkpoint again")


def stored_quantization(config: VGGTConfig, source: str) -> VGGTInt8QuantizationConfig | None:
    """What the config of a quantized checkpoint says of it; None for a floating-point one. Raises `CheckpointError`."""
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    stored = stored if isinstance(stored, dict) else stored.to_dict()
    if stored.get("quant_method") != QUANT_METHOD:
        raise CheckpointError(f"{source} is quantized by {stored.get('quant_method')!r}, which is not supported")
    return VGGTInt8QuantizationConfig.from_dict(stored)


def set_quantization(
    config: VGGTConfig, kwargs: dict[str, Any], recipe: str | Path | Recipe | None, backend: str, source: str
) -> None:
    """Hand recipe and backend to transformers: with the checkpoint's own config, or as `quantization_config`."""
    stored = stored_quantization(config, source)
    if stored is not None:
        if recipe is not None:
            raise CheckpointError(
                f"{source} is quantized already, by recipe {stored.parsed().name!r}: load it without recipe=, or start "
                "from the floating-point checkpoint to use another"
            )
        config.quantization_config = {**stored.to_dict(), "backend": backend}
    elif recipe is not None:
        parsed = load_recipe(recipe)
        kwargs["quantization_config"] = VGGTInt8QuantizationConfig(recipe=parsed.to_dict(), backend=backend)
    elif backend != "auto":
        raise BackendError(f"backend {backend!r} runs INT8 layers, but {source} has none: give a recipe as well")


def check_device(device_map: Any) -> None:
    """Raise `BackendError` if a device map asks for CUDA on a machine without it."""
    if execution_device_type(device_map) == "cuda" and not torch.cuda.is_available():
        raise BackendError(
            f"device_map {device_map!r} asks for CUDA, but torch {torch.__version__} sees no CUDA device here: use "
            "device_map='cpu', or install a CUDA build of torch and check nvidia-smi"
        )


def load_file(source: str) -> dict[str, Tensor]:
    """The tensors of a single file, memory-mapped where its kind allows. Raises `CheckpointError`."""
    if not source.endswith(_SINGLE_FILES):
        raise CheckpointError(f"{source} is a file of unknown kind; known are {', '.join(_SINGLE_FILES)}, or a folder")
    if source.endswith(".safetensors"):
        read_headers([source])
        return load_safetensors(source)
    return load_pickle(source)
