"""Run the embedded model once and compare it with the reference: does INT8 compute correct results on this machine?"""

import time
from collections import Counter
from dataclasses import dataclass, field

import torch

from vggt_int8.difference import relative_error
from vggt_int8.embedded import EMBEDDED
from vggt_int8.pretrained import VGGTInt8
from vggt_int8.recipe import load_recipe
from vggt_int8.scenes import load_scene

RECIPE, SCENE, FRAMES = "int8_rotated", "room", 2
OUTPUTS = ("pose_enc", "depth", "world_points")
PARTS = {
    "aggregator.patch_embed": "encoder",
    "aggregator.frame_blocks": "frame blocks",
    "aggregator.global_blocks": "global blocks",
    "camera_head": "camera head",
    "depth_head": "depth head",
    "point_head": "point head",
}


@dataclass(frozen=True)
class Trial:
    """Result of the trial run.

    errors: of each output, relative to the fp32 reference on the CPU.
    kernels: for each part of the network, the kernels of its INT8 layers and the number of layers.
    attention_kernels: the attention kernels of global blocks.
    error: the exception's type and message; then everything else is empty.
    """

    recipe: str
    device: str
    seconds_first: float = 0.0
    seconds: float = 0.0
    mode: str = ""
    reason: str = ""
    errors: dict[str, float] = field(default_factory=dict)
    kernels: dict[str, dict[str, int]] = field(default_factory=dict)
    attention_kernels: tuple[str, ...] = ()
    error: str = ""


def try_it(device: torch.device) -> Trial:
    """Reconstruct a bundled scene with the embedded model in INT8. The first call on a GPU compiles kernels."""
    try:
        return _run(device)
    except Exception as error:  # any error is a result of the trial
        return Trial(RECIPE, str(device), error=f"{type(error).__name__}: {' '.join(str(error).split())}"[:800])


def _run(device: torch.device) -> Trial:
    recipe, images = load_recipe(RECIPE), load_scene(SCENE).images[:FRAMES]
    model = VGGTInt8.from_pretrained(EMBEDDED, recipe=recipe, device_map=str(device)).eval()
    seconds, pred = [], None
    for _ in range(2):
        start = time.perf_counter()
        with torch.inference_mode():
            pred = model(images.to(device))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    assert pred is not None
    report = model.runtime_report()
    definition = VGGTInt8.from_pretrained(EMBEDDED, recipe=recipe, backend="reference", device_map="cpu").eval()
    with torch.inference_mode():
        wanted = definition(images)
    return Trial(
        RECIPE,
        str(device),
        seconds_first=seconds[0],
        seconds=seconds[1],
        mode=report.mode,
        reason=report.reason,
        errors={name: relative_error(pred[name].cpu(), wanted[name]) for name in OUTPUTS},
        kernels=_kernels(model),
        attention_kernels=report.attention_kernels,
    )


def _kernels(model: VGGTInt8) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = {}
    for row in model.quantization_report():
        part = next((part for name, part in PARTS.items() if row.name.startswith(name)), "")
        if row.backend != "pytorch" and part:
            found.setdefault(part, Counter())[f"{row.backend}: {row.kernel}"] += 1
    return {part: dict(count) for part, count in found.items()}
