"""`Int8Network`: makes a network quantizable, savable and loadable, for all network families."""

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from json import JSONDecodeError
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import HfApi
from transformers import PreTrainedModel

from vggt_int8.calibration.images import Images, find_scenes
from vggt_int8.embedded import embedded_name, resolve_source
from vggt_int8.model.call import Call
from vggt_int8.model.files import weight_file
from vggt_int8.model.keywords import check_keywords
from vggt_int8.model.network import Network
from vggt_int8.model.network_config import NetworkConfig
from vggt_int8.pretrained.checkpoint import opened_tensors, validate_checkpoint
from vggt_int8.pretrained.context_parallel import Parallel
from vggt_int8.pretrained.device import check_device, compute_dtype, execution_device_type
from vggt_int8.pretrained.finite import check_finite as check_outputs
from vggt_int8.pretrained.finite import check_values, is_capturing
from vggt_int8.pretrained.in_place import calibrate_loaded, check_calibration
from vggt_int8.pretrained.names import with_plain_names
from vggt_int8.pretrained.quantizer import VGGTInt8QuantizationConfig
from vggt_int8.pretrained.source import (
    check_cached_index,
    check_folder,
    given_config,
    load_config,
    load_file,
    note_base,
    note_license,
    open_file,
    set_quantization,
)
from vggt_int8.pretrained.upload import upload
from vggt_int8.quant.backends import BackendError, check_backend_name
from vggt_int8.quant.layer import int8_layers
from vggt_int8.quant.plan import LayerPlan
from vggt_int8.quant.quantize import check_backend, layer_choice
from vggt_int8.quant.report import QuantizationReport, quantization_report
from vggt_int8.recipe import Recipe, load_recipe
from vggt_int8.runtime import Runtime, RuntimeReport
from vggt_int8.runtime.runtime import LowVram, Mode
from vggt_int8.saves.errors import CheckpointError
from vggt_int8.saves.names import check_source
from vggt_int8.saves.save_id import check_loaded, check_one_save, verifying
from vggt_int8.saves.settled import load_settled


class Int8Network(Parallel, Network):
    """Mixin beside a plain network's class: INT8 weights by a recipe; without a recipe it is the plain network."""

    quantization_plan: dict[str, LayerPlan] | None = None
    load_dtypes: dict[str, torch.dtype | None]
    _runtime: Runtime | None = None

    @classmethod
    @torch.inference_mode(False)  # inference tensors could neither be trained nor encoded by other threads
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *args: Any,
        recipe: str | Path | Recipe | None = None,
        calibration: Images | None = None,
        calibration_seed: int = 0,
        backend: str = "auto",
        device_map: Any = None,
        dtype: torch.dtype | str | None = None,
        config: NetworkConfig | None = None,
        filename: str | None = None,
        verify: bool = False,
        on_call: Callable[[int, int], None] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a model from the Hub or from disk, and quantize it while loading if `recipe` is given.

        pretrained_model_name_or_path: Hub id, folder, single weight file (`.safetensors`, `.pt`, `.bin`, `.ckpt`), or
            "embedded", the small trained model inside this package, which needs no network. For a single file, sizes
            and recipe come from a `config.json` beside it; without one, sizes are those of the public checkpoint and
            heads those in the file. Prefixes of tensor names that wrappers add ("module.", "_orig_mod.", "model.") are
            removed.
        recipe: shipped name, path of a TOML file, or `Recipe`; only for a floating-point checkpoint. A quantized
            checkpoint contains its recipe.
        calibration, calibration_seed, on_call: for a recipe that needs images, as in `vggt_int8.quantize`. The model is
            then loaded in fp32, run on the images, and quantized in place; it must be on one device.
        backend: "auto" (the fastest on this machine), "native", "torchao", "bitsandbytes" or "reference".
        device_map: as in transformers: "cuda", "cpu", "auto", or a dict; "cpu" by default.
        dtype: the compute dtype; by default fp16 on CUDA and fp32 on a CPU.
        filename: of a single weight file in a folder or Hub repository without config.json.
        verify: compare the contents of the files with the digests in config.json, which reads them once more.
        kwargs: config fields to change, such as `enable_track=False` (that head's weights are not read), and keywords
            of transformers (`token`, `revision`, `cache_dir`, `max_memory`, `offload_folder`, ...).
            `vggt_int8.model.keywords` lists which are refused, and why.

        Raises `CheckpointError`, `RecipeError`, `BackendError`, `CalibrationError` or, for keywords, TypeError, saying
        what does not fit; nothing is loaded then.
        """
        source = named = resolve_source(pretrained_model_name_or_path)
        if args:
            raise TypeError(f"from_pretrained takes its options by name, such as recipe={args[0]!r:.60}")
        options = check_keywords(kwargs, cls.config_class, own=("recipe", "backend", "calibration", "filename"))
        recipe = None if recipe is None else load_recipe(recipe)
        check_calibration(recipe, calibration, calibration_seed)
        # Refuse anything but images before anything is loaded.
        scenes = None if calibration is None else find_scenes(calibration)
        calibrated = scenes is not None
        check_backend_name(backend)
        check_device(device_map)
        dtype = compute_dtype(dtype, options.pop("torch_dtype", None), device_map)
        options |= {"device_map": device_map, "dtype": torch.float32 if calibrated else dtype}
        if filename is not None:
            source = weight_file(source, filename, options)
            options.pop("subfolder", None)
        asked: dict[str, Any] = {"backend": backend, "config": config, "verify": verify, "calibrated": calibrated}
        # With copies: an attempt consumes options and writes to the config.
        loaded = load_settled(
            source, options.get("subfolder"), lambda: cls._load(source, dict(options), recipe=recipe, **asked)
        )
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info
        note_license(model.config, named, source, options)
        if recipe is not None or getattr(model.config, "quantization_config", None) is None:
            note_base(model.config, named, source)
        if not calibrated:
            return loaded
        calibrate_loaded(model, recipe, backend, scenes, calibration_seed, on_call)
        model.to(dtype)
        return loaded

    @classmethod
    def _load(
        cls,
        source: str,
        options: dict[str, Any],
        *,
        recipe: Recipe | None,
        backend: str,
        config: NetworkConfig | None,
        verify: bool,
        calibrated: bool,
    ) -> Any:
        """`from_pretrained` after the keywords have been checked; in floating point if `calibrated`."""
        if config is not None:
            config = given_config(config, options, cls.config_class)
        check_source(source, options)
        folder = source
        if Path(source).is_file():
            folder, config = open_file(source, config, options, cls.config_class)
        elif config is None:
            config = load_config(source, options, cls.config_class)
        set_quantization(config, options, recipe, backend, source, in_place=calibrated)
        options["config"] = config
        load = super(Network, cls).from_pretrained  # of transformers: a network's own is for plain ones
        if not folder:
            tensors = load_file(source, config)
            check_one_save([source], verify=verify)
            model = load(None, state_dict=tensors, **options)
        else:
            check_folder(folder, config, options)
            try:
                with verifying(verify):
                    model = load(folder, **options)
            except (OSError, JSONDecodeError) as error:
                raise CheckpointError(f"cannot load {source!r}: {error}") from error
            except (KeyError, TypeError, AttributeError, ValueError):
                if not Path(folder).is_dir():
                    check_cached_index(folder, options)
                raise
        loaded = model[0] if isinstance(model, tuple) else model  # with output_loading_info
        loaded.check_constants(source)
        if (name := embedded_name(source)) is not None:
            loaded.config.name_or_path = name
        return model

    @staticmethod
    def _load_pretrained_model(
        model: PreTrainedModel, state_dict: Any, checkpoint_files: Any, load_config: Any, *args: Any, **kwargs: Any
    ) -> Any:
        # transformers calls this after resolving the files and building the model, before any weight is read.
        quantizer = load_config.hf_quantizer
        quantizing = quantizer is not None and not quantizer.pre_quantized
        if quantizing and "disk" in (load_config.device_map or {}).values():
            raise CheckpointError(
                "the model does not fit the memory given, and layers cannot go to disk while they are quantized: load "
                "with device_map='cpu', save_pretrained() the INT8 model, then load that with offloading"
            )
        check_loaded(checkpoint_files)
        state_dict, checkpoint_files = with_plain_names(state_dict, checkpoint_files)
        if checkpoint_files is None and "disk" in (load_config.device_map or {}).values():
            raise CheckpointError(
                "layers cannot go to disk from this checkpoint, whose tensors have other names than the network's: "
                "load with device_map='cpu', save_pretrained() it, then load that with offloading"
            )
        dropped = quantizer.dropped if quantizing else {}
        validate_checkpoint(model, state_dict, checkpoint_files, quantizing=quantizing, dropped=dropped)
        if quantizing and (quantizer.seams or dropped):
            with opened_tensors(state_dict, checkpoint_files) as tensor_of:
                quantizer.look_at(tensor_of)
        with quantizer.encoding() if quantizing else nullcontext():
            return PreTrainedModel._load_pretrained_model(
                model, state_dict, checkpoint_files, load_config, *args, **kwargs
            )

    def _get_dtype_plan(self, dtype: torch.dtype) -> dict[str, torch.dtype | None]:
        return {**super()._get_dtype_plan(dtype), **getattr(self, "load_dtypes", {})}

    def run_checked(self, call: Call, check_finite: bool) -> Any:
        """A call's output; its values are checked unless a CUDA graph is being captured."""
        checked = check_finite and not is_capturing(call.images)
        parallel = self._context_parallel
        return self.run_here(call, checked) if parallel is None else parallel.run(self, call, checked)

    def run_here(self, call: Call, checked: bool) -> Any:
        """Run a call, or this process's part of it."""
        if checked and call.images.device.type == "cpu":
            check_values(call.images, call.query_points)
        output = self.runtime.run(call)
        if checked:
            # Not with shards: the search for the layer at fault would leave the other processes behind.
            rerun = (lambda: self.predict(call)) if call.shard is None else None
            first_frame = 0 if call.shard is None else call.shard.own.start
            check_outputs(self, output, call.query_points, rerun, first_frame)
        return output

    @property
    def runtime(self) -> Runtime:
        """Runs the model's calls on its own tensors, fused if possible; see `set_runtime`."""
        runtime = self._runtime
        if runtime is None:
            self._runtime = runtime = Runtime(self, mode="auto")
        elif runtime.model_ref() is not self:  # a shallow copy, or a replica: it must not run the other's modules
            self._runtime = runtime = Runtime(self, runtime.low_vram, runtime.mode)
        return runtime

    def set_runtime(self, mode: Mode = "auto", low_vram: LowVram = "auto") -> None:
        """Choose whether `forward` runs the network's modules or the fused network on the same tensors.

        mode: "auto" runs fused if the INT8 layers use the native backend and nothing rules it out (gradients, hooks,
            offloading: `runtime_report()` says what). "on" always runs fused, also without INT8 layers, and raises
            `BackendError` if that is not possible. "off" never runs fused.
        low_vram: see `vggt_int8.runtime.Runtime`.
        """
        previous, self._runtime = self._runtime, Runtime(self, low_vram, mode)
        if previous is not None:
            previous.reset()

    def runtime_report(self) -> RuntimeReport:
        """How the last `forward` ran, and why."""
        return self.runtime.report()

    def half(self) -> Self:
        """Compute in fp16 from now on. Safe for INT8 layers, which keep their dtypes, although transformers
        refuses it.
        """
        return self.to(torch.float16)

    def float(self) -> Self:
        """Compute in fp32 from now on."""
        return self.to(torch.float32)

    def quantization_report(self) -> QuantizationReport:
        """Per layer: scheme, backend, kernel, bytes, and why. Iterable; prints as a summary."""
        device_type = execution_device_type(getattr(self, "hf_device_map", None) or str(self.device))
        return quantization_report(self, self.quantization_plan, device_type)

    def fused_kernels(self, device_type: str) -> dict[str, str]:
        """Name of each layer -> description of its kernel in a fused call; empty if calls are not fused."""
        return self.runtime.kernels(device_type)

    def attention_kernels(self) -> tuple[str, ...]:
        """What attended in the global blocks of the last call, in words; empty before the first."""
        return self.runtime_report().attention_kernels

    def set_backend(self, backend: str) -> None:
        """Use another backend from now on. Raises `BackendError`, changing nothing, if it cannot run the model."""
        quantization: VGGTInt8QuantizationConfig | None = getattr(self.config, "quantization_config", None)
        if quantization is None or self.quantization_plan is None:
            raise BackendError(f"the model is not quantized, so there is nothing for backend {backend!r} to run")
        device_type = execution_device_type(getattr(self, "hf_device_map", None) or str(self.device))
        recipe = quantization.parsed()
        check_backend(self.quantization_plan, recipe, backend, device_type)
        for _, layer in int8_layers(self):
            kind = type(layer), layer.scheme
            if layer.backend == layer_choice(*kind, recipe, quantization.backend).backend:  # not one set by hand
                layer.ask(layer_choice(*kind, recipe, backend))
        quantization.backend = backend

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload VGGT INT8",
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: str = "5GB",
        tags: Sequence[str] | None = None,
    ) -> str:
        """Save the model to a temporary folder, with a model card, and upload it. Returns the commit's URL.

        tags: for the model card, in addition to the default ones. The other arguments are as in transformers.
        """
        return upload(
            self,
            HfApi(token=token),
            repo_id,
            private=private,
            max_shard_size=max_shard_size,
            tags=tags or (),
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )
