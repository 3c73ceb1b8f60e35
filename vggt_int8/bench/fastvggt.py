"""FastVGGT's public code, if it can be imported, run as in its own evaluation: another option for long scenes.

It merges tokens in its attention across frames (Shen et al., "FastVGGT: Training-Free Acceleration of Visual Geometry
Transformer", 2025), from block 0 on as its README recommends for long scenes, in bf16. Its package is called `vggt`,
like that of the reference repository, so a process can import only one of them.
"""

import importlib
from collections.abc import Mapping
from importlib.util import find_spec

import torch
from torch import Tensor

from vggt_int8.bench.baselines import COMPARED, Network, UnavailableError, is_fastvggt
from vggt_int8.bench.source import Source
from vggt_int8.model.config import VGGTConfig


def fastvggt(source: Source, device: torch.device) -> Network:
    """The network with the source's weights. Raises `UnavailableError` where its code is not there, on a CPU, or for
    another network than VGGT.
    """
    if not isinstance(source.config, VGGTConfig):
        raise UnavailableError(f"FastVGGT's code is for VGGT, and {source.name} is a {source.config.kind}")
    if find_spec("vggt") is None or find_spec("merging") is None:
        raise UnavailableError("`import vggt, merging` finds nothing: put FastVGGT's repository on PYTHONPATH")
    theirs = importlib.import_module("vggt.models.vggt").VGGT
    if not is_fastvggt(theirs):
        raise UnavailableError("`import vggt` finds the reference repository, not FastVGGT")
    if device.type != "cuda":
        raise UnavailableError("FastVGGT's code runs on a CUDA device")
    patch = source.config.patch_size
    model = theirs(
        img_size=source.config.img_size,
        patch_size=patch,
        embed_dim=source.config.embed_dim,
        enable_point=True,
        merging=0,
    )
    missing, unexpected = model.load_state_dict(source.weights, strict=False)
    if missing or unexpected:
        raise UnavailableError(f"FastVGGT has other weights: {missing[:3]} missing, {unexpected[:3]} unknown")
    model = model.to(device, torch.bfloat16).eval().requires_grad_(False)

    def run(images: Tensor) -> Mapping[str, Tensor]:
        height, width = images.shape[-2:]
        model.update_patch_dimensions(width // patch, height // patch)
        with torch.autocast(device.type, torch.bfloat16):
            outputs = model(images.to(torch.bfloat16))
        return {name: outputs[name] for name in COMPARED if name in outputs}

    return Network(model, run, lambda: "merging from block 0")
