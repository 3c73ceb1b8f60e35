"""The shape of a VGGT network; the defaults are those of VGGT-1B (`facebook/VGGT-1B`).

A `config.json` that names only some of these fields loads: the others take their default. Nothing else in such a file
has a say: what transformers would read from it beyond the sizes (code, kernels, attention implementations, other files
to load) is left out by `VGGTConfig.from_dict`, and sizes that no network of this kind has are refused before anything
is built of them.
"""

import dataclasses
import difflib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import field
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from vggt_int8.embedded import resolve_source
from vggt_int8.listing import first_few
from vggt_int8.model.size import least_parameters
from vggt_int8.plain_data import shown, too_deep
from vggt_int8.saves.names import check_source
from vggt_int8.saves.plain_files import read_json

VGGT_1B_DIM = 1024
TRACK_HEADS = 8  # attention heads of the track head's transformer: a constant of the architecture
MOST_PARAMETERS = 20_000_000_000  # sixteen times VGGT-1B's
# field -> the largest value that a network can sensibly have; beyond, a config.json is damaged or means harm.
_MOST = {
    "img_size": 16384,
    "patch_size": 512,
    "embed_dim": 32768,
    "num_register_tokens": 4096,
    "encoder_depth": 256,
    "depth": 256,
    "camera_depth": 64,
    "camera_iterations": 64,
    "encoder_num_heads": 1024,
    "num_heads": 1024,
    "camera_num_heads": 1024,
    "mlp_ratio": 64,
    "rope_freq": 1e9,
    "dpt_features": 16384,
    "track_features": 8192,
    "track_iterations": 64,
    "track_hidden_size": 16384,
    "track_corr_levels": 16,
    "track_corr_radius": 64,
}
_ALSO_READ = ("model_type", "quantization_config", "dtype", "torch_dtype")
# Of every config that transformers writes, and without meaning for this network; `save` is about the files beside it.
_UNREAD = {"architectures", "transformers_version", "_name_or_path", "name_or_path", "_commit_hash", "save"}

# What transformers writes into every model's config, with the values that mean nothing.
_TRANSFORMERS = {**PreTrainedConfig().to_dict(), "output_attentions": False}
_NO_DEFAULT = object()

Config = TypeVar("Config")


def _one_line(method: Callable[..., None]) -> Callable[..., None]:
    """A method of a strict dataclass that raises ValueError, in one line, where that raises errors of its own kind."""

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


def _with_plain_errors(cls: type[Config]) -> type[Config]:
    """A strict dataclass whose errors are ValueErrors; `StrictDataclassError` is none."""
    for name in ("__init__", "__setattr__", "validate"):
        setattr(cls, name, _one_line(getattr(cls, name)))
    return cls


@_with_plain_errors
@strict
class VGGTConfig(PreTrainedConfig):
    """Sizes and switches of a VGGT network. Impossible values raise ValueError, naming the field and the value.

    img_size: side in pixels of the square image whose patch grid the stored position embedding covers; other
        sizes, not only square ones, work too, since the embedding is resized.
    embed_dim: token width C. The heads read frame and global tokens side by side, so 2C wide.
    encoder_depth, depth: blocks of the image encoder; (frame block, global block) pairs of the aggregator.
    mlp_ratio: hidden width of the MLPs relative to their block's width (encoder, aggregator, camera head).
    camera_depth, camera_iterations: blocks of the camera head; how often it refines the poses.
    dpt_layers: the four aggregator layers that the dense heads read, from fine to coarse.
    dpt_out_channels: channels of those four after their projection; dpt_features: channels after fusion.
    track_corr_levels, track_corr_radius: correlation pyramid levels; radius of the search window in pixels.
    track_uv_embedding: whether the track head's feature maps get the position embedding of the other dense heads.
        The public checkpoint's do not, the golden networks of the tests (which have no such field) do; so None
        means: not at VGGT-1B's width, else yes. A saved config says which.
    enable_*: a head that is switched off has no module and no weights.
    """

    model_type: ClassVar[str] = "vggt"

    img_size: int = 518
    patch_size: int = 14
    embed_dim: int = 1024
    num_register_tokens: int = 4
    encoder_depth: int = 24
    encoder_num_heads: int = 16
    depth: int = 24
    num_heads: int = 16
    mlp_ratio: float | int = 4.0
    rope_freq: float | int = 100.0
    camera_depth: int = 4
    camera_num_heads: int = 16
    camera_iterations: int = 4
    dpt_features: int = 256
    dpt_out_channels: list[int] = field(default_factory=lambda: [256, 512, 1024, 1024])
    dpt_layers: list[int] = field(default_factory=lambda: [4, 11, 17, 23])
    track_features: int = 128
    track_iterations: int = 4
    track_corr_levels: int = 7
    track_corr_radius: int = 4
    track_hidden_size: int = 384
    track_uv_embedding: bool | None = None
    enable_camera: bool = True
    enable_depth: bool = True
    enable_point: bool = True
    enable_track: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.track_uv_embedding is None:
            self.track_uv_embedding = self.embed_dim != VGGT_1B_DIM
        self._refuse_others(kwargs)
        for name, value in {"dtype": self.dtype, "torch_dtype": kwargs.get("torch_dtype")}.items():
            dtype = getattr(torch, value, None) if isinstance(value, str) else value
            if value is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
                raise ValueError(f"its {name} is {shown(value)}, which is no floating-point dtype of PyTorch")
        super().__post_init__(**{name: value for name, value in kwargs.items() if name in (*_ALSO_READ, *_UNREAD)})

    def _refuse_others(self, keywords: Mapping[str, Any]) -> None:
        """Raise TypeError for a field that no VGGT has, those of transformers' own configs included: they would do
        nothing here, or end in errors of transformers. Their defaults pass, for `to_dict` may hold them.
        """
        fields = [name for name in VGGTConfig.__annotations__ if name != "model_type"]
        theirs = {field.name: getattr(self, field.name) for field in dataclasses.fields(PreTrainedConfig)}
        for name, value in {**theirs, **keywords}.items():
            if name == "model_type" and value != VGGTConfig.model_type:
                raise ValueError(f"its model_type is {shown(value)}, not {VGGTConfig.model_type!r}")
            if name in _ALSO_READ or name in _UNREAD or value is None or value == _TRANSFORMERS.get(name, _NO_DEFAULT):
                continue
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f"; did you mean {close[0]}=?" if close else f"; it has {', '.join(fields)}"
            raise TypeError(f"a VGGT's config has no field {shown(name)}{hint} (got {shown(value)})")

    def validate_sizes(self) -> None:
        """Runs after construction, since `@strict` calls every `validate_*` method."""
        self._check_ranges()
        self._check_widths()
        if self.enable_depth or self.enable_point or self.enable_track:
            self._check_dpt()
        if self.enable_track:
            self._check_multiple("track_features", 4, "for its position embedding")
            self._check_multiple("track_hidden_size", TRACK_HEADS, "its number of attention heads")
        if (count := least_parameters(self)) > MOST_PARAMETERS:
            raise ValueError(
                f"these sizes make {count:.3g} parameters; VGGT-1B has 1.26e9, and more than {MOST_PARAMETERS:.0e} are "
                "refused"
            )

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """What a `config.json` holds, as transformers reads it, of "embedded" too.

        ValueError if it is no JSON or nested too deep; `CheckpointError` for a name that leads nowhere.
        """
        source = resolve_source(pretrained_model_name_or_path)
        check_source(source, kwargs)
        if os.path.isdir(source):  # transformers would wait for a pipe, and take a missing file for VGGT-1B's
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
        """Make a config from what a `config.json` holds: its sizes and what it says of dtype and quantization.

        All else is left out, with a warning where transformers itself would not have written it. Raises ValueError for
        a misspelt field, another kind of model, or a dtype that is none; TypeError for a keyword that transformers
        would put into the config to choose code with.
        """
        own = {*cls.__annotations__, *_ALSO_READ, "return_unused_kwargs", "name_or_path", "trust_remote_code"}
        for name, value in kwargs.items():
            if name not in own and not name.startswith("_") and hasattr(PreTrainedConfig, name) and value is not None:
                raise TypeError(f"a VGGT's config does not take {name}={value!r:.80}")
        for name in ("attn_implementation", "experts_implementation"):
            if kwargs.get(name) is not None:
                raise TypeError(f"a VGGT does not take {name}={kwargs[name]!r:.80}: its attention is its own")
        return super().from_dict(_readable(config_dict, cls.__annotations__), **kwargs)

    def _check_ranges(self) -> None:
        for name in (
            *("img_size", "patch_size", "embed_dim", "encoder_depth", "encoder_num_heads", "depth", "num_heads"),
            *("camera_depth", "camera_num_heads", "camera_iterations", "dpt_features", "track_features"),
            *("track_iterations", "track_corr_levels", "track_corr_radius", "track_hidden_size"),
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {shown(getattr(self, name))}")
        for name in ("mlp_ratio", "rope_freq"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {shown(getattr(self, name))}")
        for name, most in _MOST.items():
            if getattr(self, name) > most:
                raise ValueError(f"{name} must be at most {most:g}, got {shown(getattr(self, name))}")
        if self.num_register_tokens < 0:
            raise ValueError(f"num_register_tokens must not be negative, got {self.num_register_tokens}")

    def _check_widths(self) -> None:
        self._check_multiple("img_size", self.patch_size, "patch_size")
        self._check_multiple("embed_dim", self.encoder_num_heads, "encoder_num_heads")
        self._check_multiple(
            "embed_dim", 4 * self.num_heads, "4 * num_heads: RoPE turns pairs of channels along two axes"
        )
        if self.enable_camera and 2 * self.embed_dim % self.camera_num_heads:
            raise ValueError(
                f"2 * embed_dim must be a multiple of camera_num_heads {self.camera_num_heads}, "
                f"got embed_dim {self.embed_dim}"
            )

    def _check_dpt(self) -> None:
        for name in ("dpt_layers", "dpt_out_channels"):
            if len(getattr(self, name)) != 4:
                raise ValueError(f"{name} must have 4 entries, one per feature level, got {shown(getattr(self, name))}")
        if not all(0 <= layer < self.depth for layer in self.dpt_layers):
            raise ValueError(
                f"dpt_layers must lie in 0 … {self.depth - 1}, since depth is {self.depth}; "
                f"got {shown(self.dpt_layers)}"
            )
        if any(channels < 1 or channels % 4 for channels in self.dpt_out_channels):
            raise ValueError(
                f"dpt_out_channels must be multiples of 4 (position embedding), got {shown(self.dpt_out_channels)}"
            )
        if max(self.dpt_out_channels) > _MOST["dpt_features"]:
            raise ValueError(
                f"dpt_out_channels must be at most {_MOST['dpt_features']}, got {shown(self.dpt_out_channels)}"
            )
        self._check_multiple("dpt_features", 8, "for the position embedding of its half")

    def _check_multiple(self, name: str, divisor: int, meaning: str) -> None:
        if getattr(self, name) % divisor:
            raise ValueError(f"{name} must be a multiple of {divisor} ({meaning}), got {shown(getattr(self, name))}")


def _readable(data: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What of a `config.json` is read; see `VGGTConfig.from_dict`."""
    if not isinstance(data, Mapping):
        raise TypeError(f"it holds {shown(data)}, not an object of a config's fields")
    if too_deep(data):
        raise ValueError("it is nested too deep for a description of a checkpoint")
    kind = data.get("model_type", VGGTConfig.model_type)
    if kind != VGGTConfig.model_type:
        raise ValueError(f"its model_type is {shown(kind)}, not {VGGTConfig.model_type!r}")
    quantization = data.get("quantization_config")
    if quantization is not None and not isinstance(quantization, Mapping):
        raise ValueError(f"its quantization_config is {shown(quantization)}, not an object")
    left_out = [name for name in data if name not in fields and name not in _ALSO_READ and name not in _UNREAD]
    left_out = [name for name in left_out if name not in _TRANSFORMERS]
    for name in left_out:
        if close := difflib.get_close_matches(name, list(fields), n=1, cutoff=0.8):
            raise ValueError(f"it has a field {shown(name)}, which no VGGT has; {close[0]!r} is one")
    if left_out:
        names = first_few(left_out, 8, spell=shown)
        warnings.warn(f"fields of config.json that no VGGT reads are ignored: {names}", stacklevel=4)
    return {name: value for name, value in data.items() if name in fields or name in _ALSO_READ}
