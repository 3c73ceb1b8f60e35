"""The transformers quantizer for `quant_method: "vggt_int8"`.

It puts uninitialized INT8 layers into the model before its weights are loaded and, if the checkpoint is in floating
point, encodes each tensor as it is streamed, so that the whole floating-point model never exists. Factors that are
folded into tensors (smoothing) are computed beforehand, in a separate pass over the tensors that determine them.
"""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from vggt_int8.calibration import facts_problem
from vggt_int8.kernels.cpu.threads import Workers
from vggt_int8.kernels.reference import CODE_MAX
from vggt_int8.listing import first_few
from vggt_int8.plain_data import shown
from vggt_int8.pretrained.checkpoint import CheckpointError, check_incoming_values
from vggt_int8.pretrained.device import execution_device_type
from vggt_int8.quant.attention import set_attention
from vggt_int8.quant.masked_bias import MASK, bias_mask, has_bias_mask, masked
from vggt_int8.quant.plan import LayerPlan, recipe_for
from vggt_int8.quant.quantize import HOW_TO_CALIBRATE, check_backend, prepare_module, stored_dtype
from vggt_int8.quant.seams import Seam, find_seams
from vggt_int8.quant.smoothing import Folds, TensorOf, estimated_folds
from vggt_int8.quant.soundness import LARGEST_FP16_SCALE
from vggt_int8.quant.storage import Int8Storage, copy_pieces, empty_encoding, encode_into, stored_layers, to_fp16
from vggt_int8.recipe import Recipe, RecipeError, with_float_attention

QUANT_METHOD = "vggt_int8"
FORMAT_VERSION = 2
# Format 1 has the same tensors, but codes in the shape of the floats, [N, K], which other loaders take for weights. It
# is saved as format 2.
_READ_VERSIONS = (1, FORMAT_VERSION)


@register_quantization_config(QUANT_METHOD)
class VGGTInt8QuantizationConfig(QuantizationConfigMixin):
    """The quantization part of `config.json`: format version, the whole recipe, facts about calibration and, if there
    was any, training.

    `backend` is this process's choice of kernels and is not stored. Raises `CheckpointError` for a format newer than
    this package supports, and for unknown keys.
    """

    def __init__(
        self,
        recipe: dict[str, Any] | None = None,
        format_version: int = FORMAT_VERSION,
        calibration: dict[str, Any] | None = None,
        training: dict[str, Any] | None = None,
        backend: str = "auto",
        quant_method: str = QUANT_METHOD,
        **unknown: Any,
    ) -> None:
        if type(format_version) is not int or format_version not in _READ_VERSIONS:  # True == 1 is refused, too
            raise CheckpointError(
                f"the checkpoint has format_version {shown(format_version)}; this vggt-int8 reads "
                f"{' and '.join(map(str, _READ_VERSIONS))}. Update the package: pip install -U vggt-int8"
            )
        if unknown:
            keys = first_few(sorted(unknown), 5, spell="{:.60}".format)
            raise CheckpointError(
                f"unknown keys in quantization_config: {keys}. A newer vggt-int8 may know "
                "them: pip install -U vggt-int8"
            )
        if not isinstance(recipe, dict):
            raise CheckpointError(f"quantization_config must hold the whole recipe, not {shown(recipe)}")
        if calibration is not None and (problem := facts_problem(calibration)):
            raise CheckpointError(f"quantization_config does not say how the model was calibrated: {problem}")
        if training is not None and not isinstance(training, dict):
            raise CheckpointError(f"the training of quantization_config must be a table, not {shown(training)}")
        self.quant_method = quant_method
        self.format_version = format_version
        self.recipe = with_float_attention(recipe)
        self.calibration = calibration
        self.training = training
        self.backend = backend
        self.parsed()

    def parsed(self) -> Recipe:
        """The recipe as an object."""
        try:
            return Recipe.from_dict(self.recipe, source="quantization_config")
        except RecipeError as error:
            raise CheckpointError(str(error)) from error

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `config.json`, always in the current format."""
        data = super().to_dict()
        data["format_version"] = FORMAT_VERSION
        del data["backend"]
        if self.training is None:  # older versions do not know this key
            del data["training"]
        return data


@register_quantizer(QUANT_METHOD)
class VGGTInt8Quantizer(HfQuantizer):
    """Called by `from_pretrained`; see the module docstring."""

    def __init__(self, quantization_config: VGGTInt8QuantizationConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.workers: Workers | None = None
        self.made: list[tuple[str, Future[None]]] = []  # by name; those on a CPU, which threads of our own make
        self.errors: list[str] = []
        self.seams: list[Seam] = []
        self.folds: Folds = {}
        self.masks: dict[str, Tensor] = {}  # of biases, by the name of the layer

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, device_map: Any = None, **kwargs: Any
    ) -> PreTrainedModel:
        recipe, backend = recipe_for(model, self.quantization_config.parsed()), self.quantization_config.backend
        self.quantization_config.recipe = recipe.to_dict()  # what is saved needs no map of the family any more
        if not self.pre_quantized and recipe.needs_calibration:
            raise RecipeError(f"recipe {recipe.name!r} needs images: {HOW_TO_CALIBRATE}")
        masks = {name: bias_mask(module) for name, module in model.named_modules() if has_bias_mask(module)}
        plan = prepare_module(model, recipe, backend)
        set_attention(recipe, model)
        if not self.pre_quantized:
            self.masks = {name: mask for name, mask in masks.items() if plan[name].scheme is not None}
        model.register_load_state_dict_pre_hook(check_incoming_values)
        if self.quantization_config.format_version == 1:
            for _, layer in stored_layers(model):
                layer.weight = nn.Parameter(layer.codes, requires_grad=False)
        check_backend(plan, recipe, backend, execution_device_type(device_map))
        if recipe.smoothing and not self.pre_quantized:
            self.seams = find_seams(model, plan, recipe.name)
        model.quantization_plan = plan
        ignored = model._keys_to_ignore_on_load_unexpected or set()
        model._keys_to_ignore_on_load_unexpected = {*ignored, *(f"^{re.escape(name)}$" for name in self.dropped)}
        # Tensors to be encoded arrive in the file's dtype: a prior cast to the compute dtype would change the codes.
        model.load_dtypes = {} if self.pre_quantized else {"*": None}
        return model

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        return not self.pre_quantized

    def get_quantize_ops(self) -> ConversionOps:
        return EncodeTensor(self)

    @property
    def dropped(self) -> dict[str, Tensor]:
        """Tensors of a floating-point checkpoint, by name, that the quantized model does not have: bias masks."""
        return {f"{name}.{MASK}": mask for name, mask in self.masks.items()}

    def look_at(self, tensor_of: TensorOf) -> None:
        """Read tensors of the checkpoint by name through `tensor_of` before loading, to compute folds. Raises
        `CheckpointError` for a bias mask that is not the network's.
        """
        for name, mask in self.dropped.items():
            if not torch.equal(tensor_of(name).to(mask), mask):
                raise CheckpointError(f"{name} is not this network's: the checkpoint is of another one")
        self.folds = estimated_folds(self.seams, tensor_of)

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """While tensors are encoded: provides the worker threads, and waits for all of them at the end."""
        with Workers() as self.workers:
            yield
        self.workers = None
        for name, future in self.made:
            self.note(name, future.exception())
        self.made.clear()

    def make(self, name: str, work: Callable[..., None], *arguments: Any) -> None:
        """Call `work` to fill the tensor of that name: at once, or in a worker thread if it is on a CPU."""
        if self.workers is not None and all(a.device.type == "cpu" for a in arguments if isinstance(a, Tensor)):
            self.made.append((name, self.workers.submit(work, *arguments)))
            return
        try:
            work(*arguments)
        except ValueError as error:
            self.note(name, error)

    def note(self, name: str, error: BaseException | None) -> None:
        """Collect errors of tensors until after loading, since transformers would print a long report for each."""
        if isinstance(error, ValueError):
            self.errors.append(f"{name}: {error}")
        elif error is not None:
            raise error

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        if self.errors:
            raise CheckpointError("; ".join(self.errors))
        for _, layer in stored_layers(model):
            if not layer.weight.is_meta:  # offloaded codes of format 1 keep the shape of the file they are read from
                layer.weight = nn.Parameter(as_stored(layer.weight, layer), requires_grad=False)
        return model.requires_grad_(False)

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors to save, in the format's dtypes, whatever the compute dtype is."""
        if any(parameter.is_meta for parameter in model.parameters()):  # offloaded: its hooks hold the values
            from accelerate.utils.modeling import get_state_dict_offloaded_model

            state = get_state_dict_offloaded_model(model)
        else:
            state = model.state_dict()
        stored = {name: tensor.to(stored_dtype(name, tensor)) for name, tensor in state.items()}
        for name, layer in stored_layers(model):
            stored[f"{name}.weight"] = as_stored(stored[f"{name}.weight"], layer)
        return stored, {}

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True


def as_stored(weight: Tensor, layer: Int8Storage) -> Tensor:
    """Codes in the shape of the format, [1, N, K]; those of format 1 are [N, K]."""
    return weight.unsqueeze(0) if weight.ndim == layer.code_axes else weight


class EncodeTensor(ConversionOps):
    """Converts one floating-point tensor of a checkpoint to what the model holds: codes and scale, or rounded
    floats.
    """

    def __init__(self, quantizer: VGGTInt8Quantizer) -> None:
        self.quantizer = quantizer

    @torch.no_grad()
    def convert(
        self,
        input_dict: dict[str, Any],
        *,
        full_layer_name: str,
        model: PreTrainedModel,
        missing_keys: set[str],
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        (value,) = input_dict.values()
        tensor: Tensor = value[0] if isinstance(value, list) else value
        module_name, _, parameter = full_layer_name.rpartition(".")
        if parameter == "bias" and (mask := self.quantizer.masks.get(module_name)) is not None:
            tensor = masked(tensor, mask.to(tensor.device))
        if fold := self.quantizer.folds.get(module_name):
            tensor = fold.apply(parameter, tensor)
        module = model.get_submodule(module_name)
        slot = getattr(module, parameter)
        if isinstance(module, Int8Storage) and parameter == "weight":
            scale_name = f"{module_name}.weight_scale"
            missing_keys.discard(scale_name)
            codes, scale = empty_encoding(tensor, module.channel_axis)
            way = module.channel_axis, module.rotation
            self.quantizer.make(full_layer_name, _encode_into, codes, scale, tensor, *way)
            return {full_layer_name: codes.unsqueeze(0), scale_name: scale}
        kept = torch.empty_like(tensor, dtype=slot.dtype)
        self.quantizer.make(full_layer_name, _round_into, kept, tensor, parameter)
        return {full_layer_name: kept}


def _encode_into(codes: Tensor, scale: Tensor, weight: Tensor, channel_axis: int, rotation: int) -> None:
    encode_into(codes, scale, weight, channel_axis, rotation)
    check_magnitude(scale)


def _round_into(kept: Tensor, tensor: Tensor, what: str) -> None:
    copy_pieces(kept, to_fp16(tensor, what))


def check_magnitude(scale: Tensor) -> None:
    """Raise `ValueError` for scales of weights beyond fp16, which checkpoints do not contain; kept floats are checked
    likewise.
    """
    if bool((scale > LARGEST_FP16_SCALE).any()):
        raise ValueError(f"the weight holds {scale.max().item() * CODE_MAX:g}, beyond fp16 (at most 65504)")


def check_parameters(model: nn.Module, plan: dict[str, LayerPlan]) -> None:
    """Raise `ValueError`, naming it, for a parameter beyond fp16, which a checkpoint could not store."""
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            try:
                if name not in plan or plan[name].scheme is None:
                    to_fp16(parameter.detach(), key)
                elif key == "weight":
                    check_magnitude(parameter.detach().abs().max().float() / CODE_MAX)
            except ValueError as error:
                raise ValueError(f"{name}.{key}: {error}") from error


def round_kept_parameters(model: nn.Module) -> None:
    """Round every kept floating-point parameter to fp16, the stored dtype; its own dtype stays."""
    for module in model.modules():
        if not isinstance(module, Int8Storage):
            for key, parameter in module.named_parameters(recurse=False):
                parameter.data = to_fp16(parameter.data, key).to(parameter.dtype)
