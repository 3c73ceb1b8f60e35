"""VGGT without our INT8: what users of the reference, of PyTorch, and of torchao have.

`bf16_compiled` is meant to be the best that PyTorch gives in an afternoon: bf16 weights everywhere, every block and
both dense heads compiled for the given sizes, channels-last convolutions tuned by cuDNN, and the attention kernel that
is fastest on this GPU; `bf16_compiled_graph` adds one CUDA graph around the whole forward pass.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from vggt_int8.bench.cost import fastest_attention
from vggt_int8.bench.source import Source
from vggt_int8.machine import architecture
from vggt_int8.model.config import VGGTConfig
from vggt_int8.model.families import AnyNetwork, dense_heads, network_class
from vggt_int8.model.layers import Block
from vggt_int8.model.network import Network as PlainNetwork
from vggt_int8.model.omega.config import VGGTOmegaConfig
from vggt_int8.model.unfilled import unfilled
from vggt_int8.quiet import quiet_import
from vggt_int8.runtime.graphs import GraphCache

COMPARED = ("pose_enc", "depth", "depth_conf", "world_points", "world_points_conf")

Kind = TypeVar("Kind", bound=PlainNetwork)
Forward = Callable[[Tensor], Mapping[str, Tensor]]


class UnavailableError(RuntimeError):
    """This machine or this network cannot run a variant; the message says why."""


@dataclass
class Network:
    """A model on its device and how to call it: images [S, 3, H, W] -> its outputs by name.

    mode: how the last call ran, as text.
    reset: drops what was made for earlier image shapes; called before another one, and at the end.
    """

    model: nn.Module
    forward: Forward
    mode: Callable[[], str] = lambda: ""
    reset: Callable[[], None] = lambda: None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        return self.forward(images)

    @property
    def weight_bytes(self) -> int:
        """Of all parameters, as they are stored."""
        return sum(_stored_bytes(p) for p in self.model.parameters())


def _stored_bytes(tensor: Tensor) -> int:
    """torchao's tensors report the dtype they stand for; what they hold are their parts."""
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        return sum(_stored_bytes(getattr(tensor, name)) for name in names)
    return tensor.numel() * tensor.element_size()


Build = Callable[[Source, torch.device], Network]


def float_network(source: Source, device: torch.device, dtype: torch.dtype) -> AnyNetwork:
    """The plain network in `dtype` on `device`."""
    return fill(network_class(source.config), source, device, dtype)


def fill(kind: type[Kind], source: Source, device: torch.device, dtype: torch.dtype) -> Kind:
    """A network with the source's weights, cast tensor by tensor: a full fp32 copy is never on the device."""
    model = unfilled(kind, source.config)
    model.load_state_dict(
        {k: v.to(device, non_blocking=True).to(dtype) for k, v in source.weights.items()}, assign=True
    )
    model.eval().requires_grad_(False)
    return model


def _autocast(forward: Forward, device: torch.device) -> Forward:
    def run(images: Tensor) -> Mapping[str, Tensor]:
        with torch.autocast(device.type, torch.bfloat16):
            return forward(images)

    return run


def fp32(source: Source, device: torch.device) -> Network:
    model = float_network(source, device, torch.float32)
    return Network(model, model)


def bf16(source: Source, device: torch.device) -> Network:
    model = float_network(source, device, torch.bfloat16)
    return Network(model, model)


def fp16(source: Source, device: torch.device) -> Network:
    model = float_network(source, device, torch.float16)
    return Network(model, model)


def bf16_autocast(source: Source, device: torch.device) -> Network:
    """Our network run like the reference's README runs its own: bf16 autocast over fp32 weights."""
    model = float_network(source, device, torch.float32)
    return Network(model, _autocast(model, device))


def is_fastvggt(theirs: Any) -> bool:
    """Whether a class `VGGT` of a package `vggt` is FastVGGT's (`bench/fastvggt.py`), not the reference's."""
    return "merging" in inspect.signature(theirs).parameters


def reference(source: Source, device: torch.device) -> Network:
    """The reference repository's own code, if `import vggt` (or `vggt_omega`) works, run as in its README.

    VGGT's without its track head if possible, which saves it 0.26 GB.
    """
    if isinstance(source.config, VGGTOmegaConfig):
        return _public_omega(source, device)
    if find_spec("vggt") is None:
        raise UnavailableError("`import vggt` finds nothing: install the reference repository to measure it")
    theirs = importlib.import_module("vggt.models.vggt").VGGT
    sizes = ("encoder_depth", "encoder_num_heads", "depth", "num_heads", "camera_depth", "dpt_layers")
    if any(getattr(source.config, name) != getattr(VGGTConfig(), name) for name in sizes):
        raise UnavailableError(f"the reference code has VGGT-1B's depth alone, and {source.name} has another")
    if is_fastvggt(theirs):
        raise UnavailableError("`import vggt` finds FastVGGT, not the reference repository")
    options = {"img_size": source.config.img_size, "patch_size": source.config.patch_size}
    options |= {"embed_dim": source.config.embed_dim}
    if "enable_track" in inspect.signature(theirs).parameters:
        options["enable_track"] = False
    with torch.device(device):
        model = theirs(**options)
    missing, unexpected = model.load_state_dict(source.weights, strict=False)
    missing = [name for name in missing if not name.startswith("track_head.")]
    if missing or unexpected:
        raise UnavailableError(f"the reference code has other weights: {missing[:3]} missing, {unexpected[:3]} unknown")
    model = model.to(device).eval().requires_grad_(False)
    return Network(model, _autocast(model, device))


def _public_omega(source: Source, device: torch.device) -> Network:
    """VGGT-Omega's public code, which has one size alone, and casts to bf16 by itself."""
    if find_spec("vggt_omega") is None:
        raise UnavailableError("`import vggt_omega` finds nothing: install the reference repository to measure it")
    theirs = importlib.import_module("vggt_omega.models").VGGTOmega
    with torch.device(device):
        model = theirs()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if different := [name for name, value in source.weights.items() if shapes.get(name) != tuple(value.shape)]:
        raise UnavailableError(f"the reference code has other sizes than {source.name}: {different[:3]}")
    missing, _ = model.load_state_dict(source.weights, strict=False)
    if missing:
        raise UnavailableError(f"the reference code has other weights: {missing[:3]} are missing")
    model = model.to(device).eval().requires_grad_(False)  # tables that were made on the CPU, too
    return Network(model, model)


def bf16_compiled_blocks(source: Source, device: torch.device) -> Network:
    """Only the transformer blocks compiled; heads unchanged."""
    model = float_network(source, device, torch.bfloat16)
    return _compiled(model, device, heads=False)


def bf16_compiled(source: Source, device: torch.device) -> Network:
    model = float_network(source, device, torch.bfloat16)
    return _compiled(model, device)


def bf16_compiled_graph(source: Source, device: torch.device) -> Network:
    """`bf16_compiled`, captured as a whole for each image shape, and replayed with new images."""
    if device.type != "cuda":
        raise UnavailableError("CUDA graphs need a CUDA device")
    network, graphs = bf16_compiled(source, device), GraphCache()
    eager, reset = network.forward, network.reset

    def run(images: Tensor) -> Mapping[str, Tensor]:
        outputs, _ = graphs.run(lambda inputs: _compared(eager(inputs["images"])), {"images": images})
        return outputs

    def forget() -> None:
        graphs.clear()
        reset()

    network.forward, network.reset = run, forget
    what = network.mode()
    network.mode = lambda: f"{what}, CUDA graph" if graphs.captured else what
    return network


def torchao(source: Source, device: torch.device) -> Network:
    """torchao's own W8A8 modules in place of the blocks' linears, as its documentation shows; bf16 elsewhere."""
    model = float_network(source, device, torch.bfloat16)
    _quantize_by_torchao(model)
    return Network(model, model)


def torchao_compiled(source: Source, device: torch.device) -> Network:
    """`torchao`, then compiled like `bf16_compiled`."""
    model = float_network(source, device, torch.bfloat16)
    _quantize_by_torchao(model)
    return _compiled(model, device)


def torchao_fp8_compiled(source: Source, device: torch.device) -> Network:
    """torchao's dynamic FP8 with a scale per row, compiled like `bf16_compiled`: another option on Hopper."""
    if device.type != "cuda" or architecture(device) < 89:
        raise UnavailableError("FP8 products need a GPU of compute capability 8.9 or newer")
    model = float_network(source, device, torch.bfloat16)
    _quantize_by_torchao(model, fp8=True)
    return _compiled(model, device)


def _quantize_by_torchao(model: nn.Module, fp8: bool = False) -> None:
    """The linears of encoder and aggregator; the camera head's few rows are below what its kernels take."""
    with quiet_import():
        from torchao.quantization import (
            Float8DynamicActivationFloat8WeightConfig,
            Int8DynamicActivationInt8WeightConfig,
            PerRow,
            quantize_,
        )

    # Its own Inductor options change every later compilation in the process, and took minutes without a result.
    if fp8:
        config = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)
    else:
        config = Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
    quantize_(model, config, lambda module, name: isinstance(module, nn.Linear) and name.startswith("aggregator."))


def _compiled(model: AnyNetwork, device: torch.device, heads: bool = True) -> Network:
    """Compile in place, for the sizes at hand: whoever runs one size wants no kernels for all sizes."""
    for module in model.modules():
        if isinstance(module, Block):
            module.compile(dynamic=False)
    for head in dense_heads(model) if heads else ():
        for module in head.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        for name in ("run_chunk", "activate"):  # all but the loop over chunks of frames
            if hasattr(head, name):
                setattr(head, name, torch.compile(getattr(head, name), dynamic=False))

    def run(images: Tensor) -> Mapping[str, Tensor]:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True), fastest_attention(device):
            outputs: Mapping[str, Tensor] = model(images)
        return outputs

    # Otherwise kernels of earlier sizes count against the limit of recompilations, beyond which code runs uncompiled.
    what = "blocks and heads compiled" if heads else "blocks compiled"
    return Network(model, run, lambda: what, torch._dynamo.reset)


def _compared(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: outputs[name] for name in COMPARED if name in outputs}
