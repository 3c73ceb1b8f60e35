"""Problems found in the facts, and how to solve them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from vggt_int8.doctor.facts import Facts
from vggt_int8.doctor.trial import Trial

NATIVE = 80  # the compute capability from which our kernels run
# Relative error of any output against the reference in fp32: covers fp16, and codes that round differently.
LARGEST_ERROR = 0.05
DOWNLOAD = 5.1e9  # bytes of facebook/VGGT-1B
Level = Literal["error", "warning", "hint"]


@dataclass(frozen=True)
class Finding:
    """error: INT8 does not work correctly here. warning: it is slower or larger than it could be. hint: everything
    else.
    """

    level: Level
    what: str
    remedy: str


def findings(facts: Facts, trial: Trial | None = None) -> list[Finding]:
    """All findings, the most severe first. trial: result of the embedded model, if it was run."""
    found = [*_gpu(facts), *_backends(facts), *_cpu(facts), *_trial(trial), *_disk(facts)]
    return sorted(found, key=lambda finding: ("error", "warning", "hint").index(finding.level))


def _gpu(facts: Facts) -> Iterator[Finding]:
    torch = facts.versions.get("torch")
    if facts.driver is not None and not facts.gpus:
        if facts.cuda is None:
            yield Finding(
                "error",
                f"there is an NVIDIA GPU (driver {facts.driver}), but torch {torch} is a build without CUDA",
                "install PyTorch's build for your CUDA version: see https://pytorch.org/get-started",
            )
        else:
            yield Finding(
                "error",
                f"torch {torch} (CUDA {facts.cuda}) cannot use the GPU under driver {facts.driver}: "
                f"{facts.cuda_error or 'it sees no device'}",
                "update the driver, or install a build of PyTorch for an older CUDA; look at CUDA_VISIBLE_DEVICES",
            )
    if facts.hip is not None:
        yield Finding(
            "warning",
            f"torch {torch} is a build for AMD GPUs (ROCm {facts.hip}), on which our kernels have not been run",
            "expect torchao and reference to run; please report what you see",
        )
    for gpu in facts.gpus:
        capability = f"{gpu.name} has compute capability {gpu.capability / 10}"
        if not gpu.supported:
            yield Finding(
                "error",
                f"{capability}, for which torch {torch} has no kernels",
                "install a PyTorch build that lists it: older cards need older CUDA builds, newer cards newer ones",
            )
        elif facts.hip is None and gpu.capability < NATIVE:
            yield Finding(
                "warning",
                f"{capability}: our kernels need {NATIVE / 10}, so layers run on a library or on the definition",
                "INT8 saves memory here, but no time",
            )


def _backends(facts: Facts) -> Iterator[Finding]:
    if facts.gpus and facts.hip is None and facts.versions.get("triton") is None:
        yield Finding(
            "error", "Triton is missing, which our kernels on GPUs are written in", "pip install triton (it comes with "
            "PyTorch's CUDA builds for Linux; on Windows use WSL)",
        )  # fmt: skip
    if facts.gpus and facts.compiler is None:
        yield Finding(
            "error",
            "there is no C compiler, without which Triton cannot launch kernels",
            "install gcc, or name one that is there in CC",
        )
    if facts.gpus and not facts.python_headers:
        yield Finding(
            "error",
            "Python's headers are missing (Python.h), without which Triton cannot launch kernels",
            "install python3-dev, or the package of that kind for this Python",
        )
    for kind, chosen in facts.chosen.items():
        if chosen.startswith("none"):
            yield Finding("error", f"nothing here runs {kind} layers ({chosen})", "pip install -U vggt-int8")
    for library in ("torchao", "bitsandbytes"):
        if facts.versions.get(library) is None:
            yield Finding(
                "hint", f"{library} is not installed, so that backend cannot be chosen", f"pip install {library}"
            )


def _cpu(facts: Facts) -> Iterator[Finding]:
    if facts.cpu_kernel_missing and facts.device_type == "cpu":
        yield Finding(
            "warning",
            f"INT8 runs on PyTorch's slower CPU functions: {facts.cpu_kernel_missing}",
            "install gcc" if facts.compiler is None else "mend what that names; nothing, if it is the CPU itself",
        )


def _trial(trial: Trial | None) -> Iterator[Finding]:
    if trial is None:
        return
    if trial.error:
        yield Finding("error", f"the embedded model does not run in INT8 here: {trial.error}", "please report this")
        return
    for name, error in trial.errors.items():
        if not error <= LARGEST_ERROR:
            yield Finding(
                "error",
                f"{name} of the embedded model is off by {error:.2g} of its size from what the definition gives "
                f"(at most {LARGEST_ERROR})",
                "results of this machine are not to be trusted: please report this",
            )
    if trial.mode == "plain":
        yield Finding(
            "warning", f"calls run on the network's own modules, which takes longer: {trial.reason}", "see the above"
        )


def _disk(facts: Facts) -> Iterator[Finding]:
    if facts.cache_free_bytes < DOWNLOAD and not facts.offline:
        yield Finding(
            "hint",
            f"{facts.cache} has {facts.cache_free_bytes / 1e9:.1f} GB free, and VGGT-1B's weights take "
            f"{DOWNLOAD / 1e9:.1f}",
            "make room, or set HF_HOME to a larger disk",
        )
    if facts.offline:
        yield Finding(
            "hint", "HF_HUB_OFFLINE is set: only models in the cache or in folders load", "unset it to download"
        )
