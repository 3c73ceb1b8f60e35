"""Collect facts about this machine as plain data. Nothing is evaluated here, and missing things raise no errors."""

import os
import platform
import shutil
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HUB_CACHE, is_offline_mode

from vggt_int8.export.report import installed_versions
from vggt_int8.kernels.cpu import compiled, matmul
from vggt_int8.machine import cpu_name, free_gpu_bytes, nvidia_driver, threads, total_ram
from vggt_int8.quant.backends import BACKENDS, BackendError, get_backend, resolve
from vggt_int8.recipe import Scheme

# What recipes need from a backend, by the name shown in tables.
SCHEMES = {
    "weight-only": Scheme("none"),
    "dynamic": Scheme("dynamic"),
    "static": Scheme("static"),
    "LLM.int8()": Scheme("dynamic", outlier_threshold=6.0),
}
PREFIXES = ("VGGT_INT8_", "HF_", "CUDA_VISIBLE", "TRITON_", "OMP_NUM", "PYTORCH_")
SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD")


@dataclass(frozen=True)
class Gpu:
    """capability: 10 * major + minor. supported: whether this PyTorch has kernels for it."""

    name: str
    capability: int
    total_bytes: int
    free_bytes: int
    supported: bool


@dataclass(frozen=True)
class Facts:
    """cuda, hip: versions that PyTorch was built for; None without them.
    cuda_error: why PyTorch finds no GPU although it was built for GPUs.
    driver: version of the NVIDIA driver, or None.
    backends: kind of activations -> backend -> reason why it cannot run them here, "" if it can.
    chosen: the backend that "auto" selects.
    """

    system: str
    versions: dict[str, str | None]
    cpu: str
    threads: int
    ram_bytes: int | None
    cpu_kernel: str
    cpu_kernel_missing: str
    compiler: str | None
    python_headers: bool
    cuda: str | None
    hip: str | None
    cuda_error: str
    driver: str | None
    gpus: list[Gpu] = field(default_factory=list)
    backends: dict[str, dict[str, str]] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)
    cache: str = ""
    cache_free_bytes: int = 0
    offline: bool = False
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def device_type(self) -> str:
        """The default device of all commands."""
        return "cuda" if self.gpus else "cpu"


def look() -> Facts:
    """Collect the facts of this machine. Compiles the CPU kernels if that has not been done before."""
    gpus, cuda_error = _gpus()
    device_type = "cuda" if gpus else "cpu"
    cache = _nearest(Path(HF_HUB_CACHE))
    return Facts(
        system=platform.platform(),
        versions=installed_versions(),
        cpu=cpu_name(),
        threads=threads(),
        ram_bytes=total_ram(),
        cpu_kernel=matmul.cpu_int8_kernel(),
        cpu_kernel_missing=compiled.unavailable() or "",
        compiler=c_compiler(),
        python_headers=(Path(sysconfig.get_paths()["include"]) / "Python.h").is_file(),
        cuda=torch.version.cuda,
        hip=torch.version.hip,
        cuda_error=cuda_error,
        driver=nvidia_driver(),
        gpus=gpus,
        backends=_backends(device_type),
        chosen={kind: _chosen(scheme, device_type) for kind, scheme in SCHEMES.items()},
        cache=HF_HUB_CACHE,
        cache_free_bytes=shutil.disk_usage(cache).free,
        offline=is_offline_mode(),
        environment=_environment(),
    )


def _gpus() -> tuple[list[Gpu], str]:
    """The GPUs that PyTorch finds, and its error message if it was built for GPUs but finds none."""
    if not torch.backends.cuda.is_built():
        return [], ""
    try:
        torch.cuda.init()
        return [_gpu(torch.device("cuda", index)) for index in range(torch.cuda.device_count())], ""
    except (RuntimeError, AssertionError) as error:
        return [], " ".join(str(error).split())


def _gpu(device: torch.device) -> Gpu:
    properties = torch.cuda.get_device_properties(device)
    capability = 10 * properties.major + properties.minor
    return Gpu(properties.name, capability, properties.total_memory, free_gpu_bytes(device), _has_kernels(capability))


def _has_kernels(capability: int) -> bool:
    """Whether PyTorch's list of architectures covers the GPU: binaries run on later minor versions of the same major
    version, PTX on all later versions.
    """
    for name in torch.cuda.get_arch_list():
        kind, _, number = name.partition("_")
        digits = int("".join(filter(str.isdigit, number)) or 0)
        if kind == "sm" and digits // 10 == capability // 10 and digits <= capability:
            return True
        if kind == "compute" and digits <= capability:
            return True
    return torch.version.hip is not None  # whose names are others


def _backends(device_type: str) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for kind, scheme in SCHEMES.items():
        found[kind] = {}
        for name in BACKENDS:
            try:
                found[kind][name] = get_backend(name).unsupported(scheme, device_type) or ""
            except BackendError as error:
                found[kind][name] = str(error)
    return found


def _chosen(scheme: Scheme, device_type: str) -> str:
    try:
        return resolve("auto", scheme, device_type).name
    except BackendError as error:
        return f"none: {error}"


def c_compiler() -> str | None:
    """The C compiler that Triton or this package would use. This package uses clang only on request. If CC is set, only
    that compiler counts.
    """
    names = os.environ.get("CC", "").split()[:1] or ("gcc", "cc", "clang")
    return next((found for name in names if (found := shutil.which(name))), None)


def _nearest(folder: Path) -> Path:
    """The closest existing folder: the given one or one of its parents."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _environment() -> dict[str, str]:
    """Environment variables that affect execution or file locations; for secrets only the name is shown."""
    return {
        name: "set" if any(word in name for word in SECRET) else value
        for name, value in sorted(os.environ.items())
        if name.startswith(PREFIXES)
    }
