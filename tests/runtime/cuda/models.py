"""A network at VGGT-1B's shapes on a GPU, for the tests beside."""

import gc

import torch
from torch import Tensor

from vggt_int8 import VGGTConfig, VGGTInt8, quantize

GIB = 2**30
SIZE = (392, 518)
FIELDS = ("pose_enc", "depth", "depth_conf", "world_points", "world_points_conf")


def build(weights: dict[str, Tensor], recipe: str, backend: str) -> VGGTInt8:
    with torch.device("meta"):
        model = VGGTInt8(VGGTConfig(enable_track=False))
    model.load_state_dict(weights, assign=True)
    model = model.eval().requires_grad_(False)
    for child in model.children():
        child.half()
    scenes = [images_of(8, (140, 294), seed=100 + i) for i in range(4)] if "static" in recipe else None
    quantize(model.cuda(), recipe, backend, calibration=scenes)
    release()
    return model


def release() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def images_of(frames: int, size: tuple[int, int] = SIZE, seed: int = 0) -> Tensor:
    return torch.rand(frames, 3, *size, generator=torch.Generator().manual_seed(seed)).cuda()
