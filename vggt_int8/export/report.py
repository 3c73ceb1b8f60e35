"""report.json: what ran, on what, with which versions, the time of each phase, and peak memory."""

import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vggt_int8.export.repeat import command_line, readable
from vggt_int8.images import ImageTransform, portable_name
from vggt_int8.machine import cpu_name

PACKAGES = ("vggt-int8", "torch", "transformers", "torchao", "bitsandbytes", "triton", "numpy", "pillow", "av", "scipy")


class PhaseClock:
    """Wall-clock seconds per named phase. On CUDA each phase starts and ends with all queued work done."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of this block to `seconds[name]`; a block that raises does not count."""
        start = self._now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@dataclass
class RunReport:
    """The parts of report.json that the caller knows; `to_document` adds versions, machine and peak memory."""

    model: str
    recipe: str | None
    backend: str | None
    device: torch.device
    dtype: str
    inputs: list[dict[str, Any]]
    seconds: dict[str, float]
    outputs: dict[str, Any] = field(default_factory=dict)
    model_identity: dict[str, str | None] = field(default_factory=dict)  # of `identify_model`
    quantization: dict[str, Any] | None = None  # the whole recipe
    settings: dict[str, Any] = field(default_factory=dict)  # options by name, as they were used
    runtime: dict[str, Any] = field(default_factory=dict)  # how the network ran: mode, reason, plan

    def to_document(self) -> dict[str, Any]:
        return {
            "format_version": 2,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command_line": command_line(),
            "folder": portable_name(Path.cwd()),
            "environment": {k: readable(v) for k, v in sorted(os.environ.items()) if k.startswith("VGGT_INT8_")},
            "model": portable_name(self.model),
            "model_identity": self.model_identity,
            "recipe": self.recipe,
            "quantization": self.quantization,
            "settings": self.settings,
            "backend": self.backend,
            "dtype": self.dtype,
            "device": str(self.device),
            "runtime": self.runtime,
            "versions": installed_versions(),
            "machine": describe_machine(self.device),
            "inputs": self.inputs,
            "seconds": {name: round(seconds, 4) for name, seconds in self.seconds.items()},
            "peak_memory_bytes": peak_memory(self.device),
            "outputs": self.outputs,
        }


def describe_inputs(paths: Sequence[Path], transforms: Sequence[ImageTransform]) -> list[dict[str, Any]]:
    """One entry per image, in input order: the file and its (H, W) on disk and in the model.

    A name that is not UTF-8 stands as a file:// URI. transparent_pixels: of the model's image.
    """
    return [
        {
            "file": portable_name(path),
            "original_size": list(transform.original_size),
            "model_size": list(transform.model_size),
            "transparent_pixels": int(transform.transparent_mask().sum()),
        }
        for path, transform in zip(paths, transforms, strict=True)
    ]


def installed_versions() -> dict[str, str | None]:
    """Version per package from its metadata, without importing it; None if not installed. And Python's own."""
    return {"python": platform.python_version(), **{package: _version(package) for package in PACKAGES}}


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Operating system, CPU name and PyTorch's threads; on CUDA also the GPU's name, memory and CUDA version."""
    machine: dict[str, Any] = {
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "torch_threads": torch.get_num_threads(),
        "gpu": None,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine["gpu"] = {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
    return machine


def peak_memory(device: torch.device) -> dict[str, int | None]:
    """Bytes. rss: the most resident memory this process ever had. cuda_allocated: PyTorch's peak on `device`."""
    on_cuda = device.type == "cuda"
    return {
        "rss": peak_rss(),
        "cuda_allocated": torch.cuda.max_memory_allocated(device) if on_cuda else None,
    }


def peak_rss() -> int | None:
    """Bytes: the most resident memory this process ever had; None where the system does not say."""
    # VmHWM, not getrusage: ru_maxrss of a fresh process starts at its parent's size.
    kilobytes = _proc_value(Path("/proc/self/status"), "VmHWM")
    return None if kilobytes is None else int(kilobytes.split()[0]) * 1024


def _proc_value(path: Path, key: str) -> str | None:
    """The first `key: value` of a file under /proc; None where the system has no such file or key."""
    if not path.exists():
        return None
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None
