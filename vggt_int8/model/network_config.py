"""What the configs of all networks share: which parts of a `config.json` are read, and how errors are reported.

A `config.json` that has only some of a config's fields loads with defaults for the others. Nothing else in the file has
any effect: `NetworkConfig.from_dict` drops what transformers would act on beyond the sizes (code, kernels, attention
implementations, other files to load), and implausible sizes are refused before anything is built.
"""

import dataclasses
import difflib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from vggt_int8.embedded import resolve_source
from vggt_int8.listing import first_few
from vggt_int8.plain_data import shown, too_deep
from vggt_int8.saves.names import check_source
from vggt_int8.saves.plain_files import read_json

MOST_PARAMETERS = 20_000_000_000  # sixteen times VGGT-1B's
_ALSO_READ = ("model_type", "quantization_config", "dtype", "torch_dtype", "license", "base_model")
# In every config that transformers writes, without meaning for this network; `save` describes the files beside it.
_UNREAD = {"architectures", "transformers_version", "_name_or_path", "name_or_path", "_commit_hash", "save"}

# Fields that transformers writes into every config, with their default values.
_TRANSFORMERS = {**PreTrainedConfig().to_dict(), "output_attentions": False}
_NO_DEFAULT = object()

Config = TypeVar("Config")


def _one_line(method: Callable[..., None]) -> Callable[..., None]:
    """Wrap a method of a strict dataclass so that it raises a one-line ValueError instead of `StrictDataclassError`."""

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            method(self, *args, **kwargs)
        except StrictDataclassError as error:
            words, cause = [], error.__cause__
            while cause is not None:
                words.append(f"{' '.join(str(cause).split()):.300}")
                cause = cause.__cause__
            raise ValueError(": ".join(words)) from error
        except RecursionError:
            raise ValueError("a value of the config is nested too deep") from None

    return call


def with_plain_errors(cls: type[Config]) -> type[Config]:
    """Make a strict dataclass raise ValueError; `StrictDataclassError` is not a subclass of it."""
    for name in ("__init__", "__setattr__", "validate"):
        setattr(cls, name, _one_line(getattr(cls, name)))
    return cls


class NetworkConfig(PreTrainedConfig):
    """Base of a network's config, a strict dataclass of sizes and switches.

    kind: the network's name in messages.
    head_fields: name of a head's module -> the field that disables it.
    own_names: beginnings of tensors' names that networks of no other kind have.
    """

    kind: ClassVar[str]
    head_fields: ClassVar[Mapping[str, str]]
    own_names: ClassVar[tuple[str, ...]]

    def least_parameters(self) -> int:
        """A lower bound for the number of parameters: those in matrices and kernels."""
        raise NotImplementedError

    def __post_init__(self, **kwargs: Any) -> None:
        self._refuse_others(kwargs)
        for name, value in {"dtype": self.dtype, "torch_dtype": kwargs.get("torch_dtype")}.items():
            dtype = getattr(torch, value, None) if isinstance(value, str) else value
            if value is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
                raise ValueError(f"its {name} is {shown(value)}, which is no floating-point dtype of PyTorch")
        super().__post_init__(**{name: value for name, value in kwargs.items() if name in (*_ALSO_READ, *_UNREAD)})

    def _refuse_others(self, keywords: Mapping[str, Any]) -> None:
        """Raise TypeError for a field that networks of this kind do not have, including those of transformers' own
        configs, which would do nothing here or fail inside transformers. Their defaults pass, since `to_dict` may
        contain them.
        """
        fields = [name for name in type(self).__annotations__ if name != "model_type"]
        theirs = {field.name: getattr(self, field.name) for field in dataclasses.fields(PreTrainedConfig)}
        for name, value in {**theirs, **keywords}.items():
            if name == "model_type" and value != self.model_type:
                raise ValueError(f"its model_type is {shown(value)}, not {self.model_type!r}")
            if name in _ALSO_READ or name in _UNREAD or value is None or value == _TRANSFORMERS.get(name, _NO_DEFAULT):
                continue
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f"; did you mean {close[0]}=?" if close else f"; it has {', '.join(fields)}"
            raise TypeError(f"a {self.kind}'s config has no field {shown(name)}{hint} (got {shown(value)})")

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """The contents of a `config.json`, as transformers reads it; also for "embedded".

        Raises ValueError for invalid JSON or too deep nesting, and `CheckpointError` for a source that does not exist.
        """
        source = resolve_source(pretrained_model_name_or_path)
        check_source(source, kwargs)
        if os.path.isdir(source):  # transformers would block on a pipe, and take a missing file for an empty one
            read_json(Path(source) / (kwargs.get("subfolder") or "") / "config.json")
        try:
            return super().get_config_dict(source, **kwargs)
        except RecursionError:
            raise ValueError(f"the config.json of {source!r} is nested too deep") from None
        except (OSError, ValueError) as error:
            cause = error if isinstance(error, ValueError) else error.__context__
            if isinstance(error, OSError) and not isinstance(cause, json.JSONDecodeError | UnicodeDecodeError):
                raise
            raise ValueError(f"the config.json of {source!r} is not a valid JSON file: {cause}") from error

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a config from the contents of a `config.json`: sizes, dtype and quantization.

        Everything else is dropped, with a warning if transformers itself would not have written it. Raises ValueError
        for a misspelled field, another kind of model, or an invalid dtype; TypeError for a keyword with which
        transformers would select code.
        """
        own = {*cls.__annotations__, *_ALSO_READ, "return_unused_kwargs", "name_or_path", "trust_remote_code"}
        for name, value in kwargs.items():
            if name not in own and not name.startswith("_") and hasattr(PreTrainedConfig, name) and value is not None:
                raise TypeError(f"a {cls.kind}'s config does not take {name}={value!r:.80}")
        for name in ("attn_implementation", "experts_implementation"):
            if kwargs.get(name) is not None:
                raise TypeError(f"a {cls.kind} does not take {name}={kwargs[name]!r:.80}: its attention is its own")
        return super().from_dict(_readable(config_dict, cls), **kwargs)

    def _check_least(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {shown(getattr(self, name))}")

    def _check_most(self, most: Mapping[str, float]) -> None:
        """most: field -> the largest plausible value; above, a config.json is corrupted or malicious."""
        for name, value in most.items():
            if getattr(self, name) > value:
                raise ValueError(f"{name} must be at most {value:g}, got {shown(getattr(self, name))}")

    def _check_layers(self, name: str) -> None:
        """Check that the layers in a field exist in an aggregator of `depth` layers."""
        depth, layers = getattr(self, "depth"), getattr(self, name)  # noqa: B009  (a field of every config)
        if not all(0 <= layer < depth for layer in layers):
            raise ValueError(f"{name} must lie in 0 … {depth - 1}, since depth is {depth}; got {shown(layers)}")

    def _check_dense_heads(self, most_channels: float) -> None:
        """Check the fields `dpt_layers` and `dpt_out_channels`."""
        for name in ("dpt_layers", "dpt_out_channels"):
            if len(getattr(self, name)) != 4:
                raise ValueError(f"{name} must have 4 entries, one per feature level, got {shown(getattr(self, name))}")
        self._check_layers("dpt_layers")
        channels = getattr(self, "dpt_out_channels")  # noqa: B009
        if any(width < 1 or width % 4 for width in channels):
            raise ValueError(f"dpt_out_channels must be multiples of 4 (position embedding), got {shown(channels)}")
        if max(channels) > most_channels:
            raise ValueError(f"dpt_out_channels must be at most {most_channels:g}, got {shown(channels)}")

    def _check_parameters(self, count: int) -> None:
        if count > MOST_PARAMETERS:
            raise ValueError(
                f"these sizes make {count:.3g} parameters; VGGT-1B has 1.26e9, and more than {MOST_PARAMETERS:.0e} are "
                "refused"
            )

    def _check_multiple(self, name: str, divisor: int, meaning: str) -> None:
        if getattr(self, name) % divisor:
            raise ValueError(f"{name} must be a multiple of {divisor} ({meaning}), got {shown(getattr(self, name))}")


def _readable(data: Any, cls: type[NetworkConfig]) -> dict[str, Any]:
    """The part of a `config.json` that is read; see `NetworkConfig.from_dict`."""
    fields = cls.__annotations__
    if not isinstance(data, Mapping):
        raise TypeError(f"it holds {shown(data)}, not an object of a config's fields")
    if too_deep(data):
        raise ValueError("it is nested too deep for a description of a checkpoint")
    kind = data.get("model_type", cls.model_type)
    if kind != cls.model_type:
        raise ValueError(f"its model_type is {shown(kind)}, not {cls.model_type!r}")
    quantization = data.get("quantization_config")
    if quantization is not None and not isinstance(quantization, Mapping):
        raise ValueError(f"its quantization_config is {shown(quantization)}, not an object")
    left_out = [name for name in data if name not in fields and name not in _ALSO_READ and name not in _UNREAD]
    left_out = [name for name in left_out if name not in _TRANSFORMERS]
    for name in left_out:
        if close := difflib.get_close_matches(name, list(fields), n=1, cutoff=0.8):
            raise ValueError(f"it has a field {shown(name)}, which no {cls.kind} has; {close[0]!r} is one")
    if left_out:
        names = first_few(left_out, 8, spell=shown)
        warnings.warn(f"fields of config.json that no {cls.kind} reads are ignored: {names}", stacklevel=4)
    return {name: value for name, value in data.items() if name in fields or name in _ALSO_READ}
