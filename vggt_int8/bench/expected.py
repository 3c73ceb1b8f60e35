"""The reference outputs of a variant, and the comparison that decides whether its time may be shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vggt_int8.bench.baselines import COMPARED, Build, fp16, fp32
from vggt_int8.bench.cost import fastest_attention
from vggt_int8.bench.source import Source
from vggt_int8.bench.timing import release
from vggt_int8.difference import Difference

# Above so many frames fp32 takes longer than all that is measured: the plain fp16 network takes its place there, and
# nothing does where that takes minutes too.
FP32_FRAMES, FP16_FRAMES = 32, 200
LIMIT = 0.1  # relative error of an output above which a result counts as wrong

Errors = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Expected:
    """outputs: by name, on the host. by: "fp32" or "fp16", or "" without outputs."""

    by: str
    outputs: dict[str, Tensor]


def expected_outputs(
    source: Source, frames: Sequence[int], size: tuple[int, int], device: torch.device, keyframes: int | None = None
) -> dict[int, Expected]:
    """For each number of frames, the outputs that are taken as right. A network is built once for all.

    keyframes: of so many frames global blocks see the keys, in the plain network as well; None: of all.
    """
    found: dict[int, Expected] = {}
    for by, build, most in (("fp32", fp32, FP32_FRAMES), ("fp16", fp16, FP16_FRAMES)):
        wanted = [s for s in frames if s not in found and (s <= most or device.type == "cpu")]
        for s, outputs in _run(build, source, wanted, size, device, keyframes).items():
            found[s] = Expected(by, outputs)
        release(device)
    return {s: found.get(s, Expected("", {})) for s in frames}


def _run(
    build: Build,
    source: Source,
    frames: Sequence[int],
    size: tuple[int, int],
    device: torch.device,
    keyframes: int | None,
) -> dict[int, dict[str, Tensor]]:
    """Outputs on the host; those for which the GPU's memory is too small are missing.

    What is measured may be smaller than what it is compared with, so that is no error.
    """
    results: dict[int, dict[str, Tensor]] = {}
    keywords = {} if keyframes is None else {"global_attention": "keyframes", "keyframes": keyframes}
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), fastest_attention(device):
        try:
            network = build(source, device) if frames else None
            for s in frames:
                assert network is not None
                with torch.no_grad():
                    outputs = network.model(source.images(s, size, device), **keywords)
                results[s] = {name: outputs[name].cpu() for name in COMPARED if name in outputs}
                del outputs
                release(device)
        except torch.OutOfMemoryError:
            return results
    return results


def compare(expected: Expected, outputs: Mapping[str, Tensor]) -> tuple[Errors, str]:
    """Errors of each output, and why they are too large; "" if they are not.

    Without expected outputs, only values that are not finite are too large.
    """
    if not expected.outputs:
        bad = [name for name in COMPARED if name in outputs and not bool(outputs[name].isfinite().all())]
        return {}, f"{', '.join(bad)} not finite" if bad else ""
    errors: Errors = {}
    for name, tensor in expected.outputs.items():
        if name not in outputs or outputs[name].shape != tensor.shape:
            got = list(outputs[name].shape) if name in outputs else "missing"
            return errors, f"{name} is {got}, not {list(tensor.shape)}"
        found = Difference().add(outputs[name], tensor)
        errors[name] = {"relative": found.relative, "max_abs": found.max_abs}
    worst = max(errors, key=lambda name: _badness(errors[name]["relative"]))
    if _badness(errors[worst]["relative"]) > LIMIT:
        return errors, f"relative error of {worst} is {errors[worst]['relative']:.3g}, above {LIMIT}"
    return errors, ""


def _badness(relative: float) -> float:
    return relative if relative >= 0 else float("inf")  # NaN compares as false
