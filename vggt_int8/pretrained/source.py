"""The source of a model as a user names it (Hub id, folder, or single file), with its config and its recipe.

Everything here is checked before a weight is read, cheapest first: names, then the small files.
"""

import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from vggt_int8.embedded import resolve_source
from vggt_int8.listing import first_few
from vggt_int8.model.keywords import HUB_KEYWORDS
from vggt_int8.model.network_config import NetworkConfig
from vggt_int8.model.size import FAR_LARGER
from vggt_int8.pretrained.checkpoint import read_headers
from vggt_int8.pretrained.kinds import check_names, config_class, config_class_of_names, heads_found, hint_of_model_type
from vggt_int8.pretrained.names import load_tensors, plain_names
from vggt_int8.pretrained.quantizer import QUANT_METHOD, VGGTInt8QuantizationConfig
from vggt_int8.quant.backends import BackendError
from vggt_int8.recipe import Recipe
from vggt_int8.saves.base import base_in, base_of
from vggt_int8.saves.errors import CheckpointError
from vggt_int8.saves.hub import NO_NETWORK
from vggt_int8.saves.license import find_license, license_in
from vggt_int8.saves.names import check_source
from vggt_int8.saves.plain_files import SINGLE_FILES, check_index, check_plain_file, check_weight_files, read_json
from vggt_int8.saves.writing import restore


def load_config(source: str, kwargs: dict[str, Any], kind: type[NetworkConfig] | None = None) -> NetworkConfig:
    """The config of a folder or Hub id. Raises `CheckpointError`.

    kwargs: those of `from_pretrained`. Config fields among them, such as `enable_track=False`, are removed from it and
        override the checkpoint's, as everywhere in transformers.
    kind: the required config class; None for the one that `model_type` names.
    """
    subfolder = kwargs.get("subfolder") or ""
    if Path(source).is_dir():
        path = Path(source) / subfolder / "config.json"
        if not os.path.lexists(path):
            restore(path.parent)
        if not os.path.lexists(path):
            raise CheckpointError(
                f"there is no config.json in {str(path.parent)!r}: a checkpoint needs one beside its weights"
                f"{_meant(path.parent)}"
            )
    else:
        path = _from_hub(source, {key: kwargs[key] for key in HUB_KEYWORDS if key in kwargs})
    data = read_json(path)
    kind = kind or config_class(data)
    return make_config(data, source, _taken(kind, kwargs), kind)


def _taken(kind: type[NetworkConfig], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The config fields among `kwargs`, which are removed from it."""
    return {key: kwargs.pop(key) for key in kind.__annotations__ if key in kwargs}


def config_class_of(source: str) -> type[NetworkConfig]:
    """The config class of a folder, Hub id or file: from config.json, or for a file without one from the names of its
    tensors.

    Raises `CheckpointError` if neither can be read.
    """
    path = Path(source)
    if not path.is_file():
        return type(load_config(source, {}))
    if os.path.lexists(beside := path.parent / "config.json"):
        return config_class(read_json(beside))
    return config_class_of_names(plain_names(read_headers([source])).values())


def _meant(folder: Path) -> str:
    """A hint if the folder contains a checkpoint, is the cache of a Hub model, or has single weight files, as the
    public folder of VGGT-Omega does.
    """
    found = [path.parent for pattern in ("*", "snapshots/*") for path in sorted(folder.glob(f"{pattern}/config.json"))]
    files = sorted(str(path) for path in folder.glob("*") if path.suffix in SINGLE_FILES and path.is_file())
    named = f"; single files of weights are named themselves: {first_few(files)}" if files else ""
    return "".join(f"; {str(below)!r} has one" for below in found[:3]) + named


def _from_hub(source: str, options: dict[str, Any]) -> Path:
    try:
        path = cached_file(source, "config.json", **options)
    except OSError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"cannot get the config.json of {source!r}: {reason} It is neither a folder here nor in the cache, and the "
            f"Hub did not give it. Check the name and the network, or download the files and pass their folder. "
            f"{NO_NETWORK}."
        ) from error
    if path is None:  # transformers raises for every other file that a repository lacks, and not for this one
        where = "/".join(filter(None, [source, options.get("subfolder")]))
        raise CheckpointError(
            f"there is no config.json in {where!r} on the Hub: a checkpoint needs one beside its weights. A folder in "
            "a repository is named by subfolder=, a single file of weights by filename=; commands take the path of "
            "such a file, once it is here"
        )
    return Path(path)


def make_config(data: Any, source: str, changed: dict[str, Any], kind: type[NetworkConfig]) -> NetworkConfig:
    """A config from a file's contents, with some fields changed. Raises `CheckpointError`."""
    try:
        config: NetworkConfig = kind.from_dict(data)
        for name, value in changed.items():
            setattr(config, name, value)
        config.validate()  # once more: the fields are set after the first time
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"the config.json of {source!r} describes no {kind.kind}: {reason:.600}{hint_of_model_type(data, kind)}"
        ) from error
    return config


def given_config(config: Any, kwargs: dict[str, Any], kind: type[NetworkConfig]) -> NetworkConfig:
    """A copy of `config=`, or the config that it names, with the fields among `kwargs` changed."""
    if isinstance(config, str | os.PathLike):
        path = Path(resolve_source(config))
        if not path.is_file():
            check_source(str(path), kwargs)
            return load_config(str(path), kwargs, kind)
        return make_config(read_json(path), str(path), _taken(kind, kwargs), kind)
    if not isinstance(config, kind):
        raise TypeError(f"config is a {type(config).__name__}; pass a {kind.__name__}, or leave it out")
    if config._attn_implementation not in (None, "sdpa"):
        raise TypeError(f"a {kind.kind} does not take attn_implementation={config._attn_implementation!r:.80}")
    copied = make_config({}, "config=", {}, kind)
    data = config.to_dict() | _taken(kind, kwargs)
    for name in kind.__annotations__:
        setattr(copied, name, data[name])
    try:
        copied.validate()
    except ValueError as error:
        raise CheckpointError(f"config= describes no {kind.kind}: {error}") from error
    copied.quantization_config = getattr(config, "quantization_config", None)
    if copied.quantization_config is None:
        del copied.quantization_config
    return copied


def check_folder(source: str, config: NetworkConfig, kwargs: dict[str, Any]) -> None:
    """Check the weight files of a folder, and that they can hold a network of these sizes."""
    folder = Path(source) / (kwargs.get("subfolder") or "")
    if not folder.is_dir():
        return
    if (folder / "adapter_config.json").is_file():  # with peft, transformers would load the base that it names instead
        raise CheckpointError(
            f"{source} holds an adapter, which is not loaded with the network: merge it into the weights "
            "(peft's merge_and_unload) and save those"
        )
    check_weight_files(folder, kwargs.get("variant"))
    weights = [path for path in folder.iterdir() if path.suffix in SINGLE_FILES and path.is_file()]
    check_size(config, weights, source)


def check_cached_index(source: str, kwargs: dict[str, Any]) -> None:
    """Raise `CheckpointError` if the index from the Hub is invalid, for which transformers raises unrelated errors."""
    name = "/".join([*filter(None, [kwargs.get("subfolder")]), SAFE_WEIGHTS_INDEX_NAME])
    found = try_to_load_from_cache(source, name, kwargs.get("cache_dir"), kwargs.get("revision"))
    if isinstance(found, str):
        check_index(Path(found))


def check_size(config: NetworkConfig, files: list[Path], source: str) -> None:
    """Raise `CheckpointError` if the network is far too large for its files: a weight takes at least a byte."""
    size, count = sum(path.stat().st_size for path in files), config.least_parameters()
    if not files or count <= FAR_LARGER * size:
        return
    read_headers(str(path) for path in files)  # says so if they are damaged
    raise CheckpointError(
        f"the sizes in the config.json of {source!r} make {count:.3g} parameters, but its files have {size:.3g} bytes: "
        "the config belongs to other weights"
    )


def stored_quantization(config: NetworkConfig, source: str) -> VGGTInt8QuantizationConfig | None:
    """The quantization config of a quantized checkpoint; None for a floating-point one. Raises `CheckpointError`."""
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    if isinstance(stored, VGGTInt8QuantizationConfig):
        return stored
    stored = stored if isinstance(stored, dict) else getattr(stored, "to_dict", lambda: stored)()
    if not isinstance(stored, dict):
        raise CheckpointError(
            f"the config.json of {source!r} describes no {config.kind}: its quantization_config is {stored!r:.60}"
        )
    method = stored.get("quant_method")
    if method != QUANT_METHOD:
        raise CheckpointError(
            f"{source} is quantized by {getattr(method, 'value', method)!r:.60}, which is not supported: start "
            "from the floating-point checkpoint, with recipe="
        )
    return VGGTInt8QuantizationConfig.from_dict(stored)


def set_quantization(
    config: NetworkConfig,
    kwargs: dict[str, Any],
    recipe: Recipe | None,
    backend: str,
    source: str,
    *,
    in_place: bool = False,
) -> None:
    """Pass recipe and backend to transformers: with the checkpoint's own config, or as `quantization_config`; neither
    if the model is quantized `in_place` after loading.
    """
    stored = stored_quantization(config, source)
    if stored is not None:
        if recipe is not None:
            raise CheckpointError(
                f"{source} is quantized already, by recipe {stored.parsed().name!r}: load it without recipe=, or start "
                "from the floating-point checkpoint to use another"
            )
        config.quantization_config = {**stored.to_dict(), "format_version": stored.format_version, "backend": backend}
    elif recipe is not None:
        if not in_place:
            kwargs["quantization_config"] = VGGTInt8QuantizationConfig(recipe=recipe.to_dict(), backend=backend)
    elif backend != "auto":
        raise BackendError(f"backend {backend!r} runs INT8 layers, but {source} has none: give a recipe as well")


def open_file(
    source: str, config: NetworkConfig | None, kwargs: dict[str, Any], kind: type[NetworkConfig] | None = None
) -> tuple[str, NetworkConfig]:
    """The folder to load instead of a single file ("" to load the file itself), and its config.

    A `config.json` beside the file describes it. `config` overrides it, except that only the former can say how codes
    are stored. kind: the config class; None to determine it from the file. Raises `CheckpointError` for other files and
    for one shard of a checkpoint.
    """
    path = Path(source)
    check_plain_file(path)
    for name in ("variant", "subfolder"):
        if kwargs.get(name):
            raise TypeError(f"{name}={kwargs[name]!r:.60} chooses among files, but {source!r} is one file")
    if not source.endswith(SINGLE_FILES):
        hint = f", such as {str(path.parent)!r}" if path.suffix == ".json" else ""
        raise CheckpointError(
            f"{source} is a file of unknown kind; known are {', '.join(SINGLE_FILES)}, or a folder{hint}"
        )
    if re.fullmatch(r".*-\d+-of-0*(?!1\.)\d+\.\w+", path.name):
        raise CheckpointError(
            f"{source} is one of several files of a checkpoint: pass their folder, {str(path.parent)!r}"
        )
    beside = os.path.lexists(path.parent / "config.json")  # and if it is no file, reading it says so
    if config is None:
        data = read_json(path.parent / "config.json") if beside else None
        names = [] if beside else list(plain_names(read_headers([source])).values())
        kind = kind or (config_class(data) if beside else config_class_of_names(names))
        check_names(names, source, kind)
        changed = _taken(kind, kwargs)
        data = data if beside else heads_found(names, source, kind, changed)
        config = make_config(data, source, changed, kind)
    elif beside and getattr(config, "quantization_config", None) is None:
        quantization = getattr(load_config(str(path.parent), {}, kind), "quantization_config", None)
        if quantization is not None:
            config.quantization_config = quantization
    if beside:
        check_size(config, [path], source)
    if beside and path.name == SAFE_WEIGHTS_NAME:
        return str(path.parent), config
    return "", config


def load_file(source: str, config: NetworkConfig) -> dict[str, Tensor]:
    """The tensors of a single file, memory-mapped if its type allows. Raises `CheckpointError`."""
    tensors = load_tensors(source)
    if getattr(config, "quantization_config", None) is None and any(name.endswith(".weight_scale") for name in tensors):
        raise CheckpointError(
            f"{source} holds INT8 codes, but the config.json that says how to read them is not beside it: put it "
            "there, or pass the folder that save_pretrained() wrote"
        )
    return tensors


def note_license(config: NetworkConfig, named: str, source: str, options: dict[str, Any]) -> None:
    """Record the licence that the source states in the config, unless config.json has one, so that it is saved with the
    weights.

    named: folder, file or Hub id.
    source: the same, or the weight file in it.
    """
    found = license_in(config) or find_license(named, options, source if Path(source).is_file() else None)
    if found is not None:
        config.license = found.to_dict()


def note_base(config: NetworkConfig, named: str, source: str) -> None:
    """Write into a config where weights in floating point came from, unless config.json says it. Arguments as above."""
    found = base_in(config) or base_of(named, source if Path(source).is_file() else None)
    if found is not None:
        config.base_model = found.to_dict()
