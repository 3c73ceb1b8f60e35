"""What all networks share as transformers models: initialization, loading and saving of plain weights."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils import ModelOutput

from vggt_int8.embedded import resolve_source
from vggt_int8.global_attention import GlobalAttention
from vggt_int8.model.keywords import HUB_KEYWORDS, check_keywords
from vggt_int8.model.layers import LayerScale
from vggt_int8.model.network_config import NetworkConfig
from vggt_int8.model.size import FAR_LARGER
from vggt_int8.model.unfilled import NoInitialWeights
from vggt_int8.quiet import quiet_import
from vggt_int8.saves.errors import CheckpointError
from vggt_int8.saves.names import check_source
from vggt_int8.saves.plain_files import SINGLE_FILES, check_weight_files
from vggt_int8.saves.save_id import check_loaded, verifying
from vggt_int8.saves.settled import load_settled
from vggt_int8.saves.writing import check_saving, headers_with_id, restore, saved_whole

with quiet_import():  # imports torchao, which prints
    from transformers import PreTrainedModel

if TYPE_CHECKING:
    from vggt_int8.model.call import Call


def _check_weights(source: str, options: dict[str, Any]) -> None:
    """Raise `CheckpointError` if a folder's weight files are not weights, or far too small for the sizes in its
    config.
    """
    folder = Path(source) / (options.get("subfolder") or "")
    if not folder.is_dir():
        return
    check_weight_files(folder, options.get("variant"))
    files = [path for path in folder.iterdir() if path.suffix in SINGLE_FILES and path.is_file()]
    size, count = sum(path.stat().st_size for path in files), options["config"].least_parameters()
    if files and count > FAR_LARGER * size:
        raise CheckpointError(
            f"the sizes in the config of {source!r} make {count:.3g} parameters, but its files have {size:.3g} bytes: "
            "the config belongs to other weights"
        )


class Network(PreTrainedModel):
    """A network in floating point. Its config class is a `NetworkConfig`.

    output_class: type of a call's result.
    head_modules: name of a head as a call gives it -> name of its module, which is None if the head is disabled.
    special_tokens: part of the network -> number of tokens before the patches of each frame in its linears.
    special_alone: name prefixes of the linears that process only these tokens.
    int8_hint, quantized_hint: advice in errors for callers that ask for INT8, and for those that have a quantized
        checkpoint.
    """

    config_class: type[NetworkConfig]
    main_input_name = "images"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    int8_hint: ClassVar[str]
    quantized_hint: ClassVar[str]
    head_modules: ClassVar[Mapping[str, str]]
    output_class: ClassVar[type[ModelOutput]]
    _default_attention: GlobalAttention | None = None

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, verify: bool = False, **kwargs: Any
    ) -> Any:
        """Load the plain network in floating point, from the Hub, a folder, or "embedded", as transformers does.

        verify: compare the contents of the files with the digests in config.json, which reads them once more.

        Raises ValueError for a checkpoint that does not fit the network, `CheckpointError` for a quantized one and for
        files of different saves, and TypeError for a keyword that would have no effect. `VGGTInt8.from_pretrained`,
        which needs no recipe, supports more kinds of files and checks them before anything is loaded.
        """
        source = resolve_source(pretrained_model_name_or_path)
        if args or not {"recipe", "backend"}.isdisjoint(kwargs):
            raise TypeError(f"{cls.__name__} is the plain network: {cls.int8_hint}")
        options = check_keywords(kwargs, cls.config_class)
        return load_settled(
            source, options.get("subfolder"), lambda: cls._load_plain(source, dict(options), verify=verify)
        )

    @classmethod
    def _load_plain(cls, source: str, options: dict[str, Any], *, verify: bool) -> Any:
        """`from_pretrained` after the keywords have been checked."""
        wants_info = bool(options.pop("output_loading_info", False))
        if options.get("config") is None:
            restore(Path(source) / (options.get("subfolder") or ""))
            hub = {key: options[key] for key in HUB_KEYWORDS if key in options}
            fields = {key: options.pop(key) for key in cls.config_class.__annotations__ if key in options}
            options["config"] = cls.config_class.from_pretrained(source, **hub, **fields)
        else:
            check_source(source, options)
        if getattr(options["config"], "quantization_config", None) is not None:
            raise ValueError(f"{source} is quantized: {cls.quantized_hint}")
        _check_weights(source, options)
        with verifying(verify):
            model, info = cls._load_told(source, options)
        return (model, info) if wants_info else model

    @classmethod
    def _load_told(cls, source: str, options: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> Any:
        """The model and the loading info of transformers. tensors: a state dict to load in place of the source's files.

        Raises ValueError if the tensors do not fit the network.
        """
        told = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # other shapes are told of here, by name
        if tensors is not None:
            options = {**options, "state_dict": tensors}
        model, info = super().from_pretrained(source if tensors is None else None, **options, **told)
        if wrong := [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"], *info["error_msgs"]]:
            raise ValueError(f"{source} does not fit the network: {sorted(map(str, wrong))[:5]} ({len(wrong)} in all)")
        return model, info

    @classmethod
    def get_init_context(cls, *args: Any, **kwargs: Any) -> list[Any]:
        """Skips random initialization: a network that is being loaded gets every weight from its checkpoint, or loading
        fails.
        """
        return [*super().get_init_context(*args, **kwargs), NoInitialWeights()]

    @staticmethod
    def _load_pretrained_model(
        model: PreTrainedModel, state_dict: Any, checkpoint_files: Any, *args: Any, **kwargs: Any
    ) -> Any:
        # transformers calls this after resolving the files and before reading any weight.
        check_loaded(checkpoint_files)
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write `config.json` and safetensors files (options as in transformers, such as `max_shard_size`).

        Everything is written to a hidden folder first and then renamed, so an interrupted save leaves the previous
        files. All files carry one id, so files of different saves are never loaded together, and config.json holds
        digests for `from_pretrained(…, verify=True)`. If an adapter is loaded, only the adapter is written, by
        transformers.

        Raises `CheckpointError` if the folder cannot take the save, TypeError for an option without effect, and
        OSError.
        """
        if not kwargs.get("is_main_process", True):
            return
        if getattr(self, "_hf_peft_config_loaded", False):
            super().save_pretrained(save_directory, **kwargs)
            return
        target = Path(save_directory).expanduser()
        options, push = check_saving(self, target, kwargs)
        with saved_whole(target) as temporary, headers_with_id(self, options.get("state_dict")):
            super().save_pretrained(temporary, **options)
        if push is not None:
            self.push_to_hub(**push)

    @property
    def default_attention(self) -> GlobalAttention:
        """The global attention of calls that do not specify one: exact, or as the recipe says. Can be set."""
        return self._default_attention or GlobalAttention.of(self.config.depth)

    @default_attention.setter
    def default_attention(self, value: GlobalAttention) -> None:
        self._default_attention = GlobalAttention.of(self.config.depth, value.layers, default=value)

    @property
    def global_layers(self) -> tuple[int, ...]:
        """The layers that `global_attention` applies to."""
        return tuple(range(self.config.depth))

    @property
    def special_tokens(self) -> dict[str, int]:
        return {}

    @property
    def special_alone(self) -> tuple[str, ...]:
        return ()

    @property
    def present_heads(self) -> tuple[str, ...]:
        """The heads that are enabled."""
        return tuple(head for head, module in self.head_modules.items() if getattr(self, module) is not None)

    def checked_call(self, *args: Any, **kwargs: Any) -> "Call":
        """A `Call` from the arguments of `forward`. Raises ValueError or TypeError, naming what does not fit."""
        raise NotImplementedError

    def layers_read(self, heads: Collection[str]) -> frozenset[int]:
        """Layers of the aggregator whose tokens some heads read."""
        raise NotImplementedError

    def predict(self, call: "Call") -> Any:
        """Run the network's own modules on a checked call."""
        raise NotImplementedError

    def check_constants(self, source: str) -> None:
        """Raise ValueError if a checkpoint holds other constants than the network computes with; here there are
        none.
        """

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Random weights for the layer types that all networks share; `init` skips what was loaded from a
        checkpoint.
        """
        match module:
            case nn.Linear():
                init.trunc_normal_(module.weight, std=0.02)
                init.zeros_(module.bias)
            case nn.Conv2d() | nn.ConvTranspose2d():
                init.kaiming_uniform_(module.weight, a=5**0.5)
                if module.bias is not None:
                    init.zeros_(module.bias)
            case nn.LayerNorm() | nn.GroupNorm():
                if module.weight is not None:
                    init.ones_(module.weight)
                    init.zeros_(module.bias)
            case LayerScale():
                init.constant_(module.gamma, module.init_value)
