"""What this machine has: CPUs and their instructions, threads, GPUs, Triton. With `cpus.py` the one place that asks the
system.

What cannot change while a process runs is asked once.
"""

import functools
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from vggt_int8.cpus import quota

_CPUINFO = Path("/proc/cpuinfo")


def threads() -> int:
    """Number of compute threads: as many as PyTorch uses, but no more than this process's CPU quota."""
    limit = quota()
    return torch.get_num_threads() if limit is None else min(torch.get_num_threads(), limit)


def cpu_name() -> str:
    """The model name from Linux, else the one that Python knows."""
    return next(iter(_stated("model name")), "") or platform.processor() or platform.machine()


def cpu_identity() -> str:
    """What determines `-march=native`: this CPU's model and its instruction sets, as reported by Linux."""
    keys = ("vendor_id", "cpu family", "model", "model name", "flags")
    return "\n".join(sorted({f"{key}: {value}" for key in keys for value in _stated(key)}))


def cpu_features() -> frozenset[str]:
    """Linux's names of this CPU's instruction sets, such as avx2 and avx512_vnni; empty on other systems."""
    return frozenset(name for flags in _stated("flags") for name in flags.split())


@functools.cache
def _stated(key: str) -> tuple[str, ...]:
    """The distinct values of a key in /proc/cpuinfo; empty if there is no such file or key."""
    if not _CPUINFO.exists():
        return ()
    pairs = (line.partition(":") for line in _CPUINFO.read_text(encoding="utf-8").splitlines())
    return tuple(dict.fromkeys(value.strip() for name, _, value in pairs if name.strip() == key))


def pytorch_uses_avx512() -> bool:
    """Whether PyTorch's own kernels use AVX-512. Without it `torch._int_mm` is a plain loop: exact and slow."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


@functools.cache
def int_mm_is_exact() -> bool:
    """Whether `torch._int_mm` is exact on this CPU. Libraries call it without checking.

    Without VNNI, oneDNN adds pairs of products in 16 bits and silently **saturates**, so it is tested.
    """
    return multiplies_exactly(lambda x, weight: torch._int_mm(x, weight.t()))


def multiplies_exactly(multiply: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """Whether codes [M, K] times weight [N, K] give the exact int32 sums [M, N] on a CPU.

    Extreme codes over a long K detect 16-bit saturation; odd sizes and a single row cover kernels for special shapes.
    """
    with torch.device("cpu"):  # also when asked while a model is built on the meta device
        generator = torch.Generator().manual_seed(0)
        for m, k, n in ((1, 4096, 8), (17, 1037, 9), (64, 2048, 64)):
            x = torch.randint(-127, 128, (m, k), generator=generator, dtype=torch.int8)
            weight = torch.randint(-127, 128, (n, k), generator=generator, dtype=torch.int8)
            x[0], weight[0] = 127, 127
            weight[-1] = -127
            if not torch.equal(multiply(x, weight), (x.double() @ weight.double().t()).to(torch.int32)):
                return False
    return True


def triton_is_there() -> bool:
    """Whether Triton is installed, without importing it, which takes seconds."""
    return find_spec("triton") is not None


@functools.cache
def architecture(device: torch.device) -> int:
    """10 * major + minor of a GPU's compute capability; Triton's interpreter, on a CPU, counts as the oldest one."""
    if device.type == "cpu":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 2 for Triton's interpreter, which runs on a CPU."""
    return 2 if device.type == "cpu" else torch.cuda.get_device_properties(device).multi_processor_count


_LARGE_TENSOR = 20 << 20  # bytes, from about which PyTorch reserves memory for a tensor alone


def free_gpu_bytes(device: torch.device) -> int:
    """Memory that this process can still use: free on the GPU and cached by PyTorch, within its limit if there is one.

    Not everything that PyTorch has reserved and does not use is available: pools of CUDA graphs serve only these graphs
    (and persist if a library keeps its workspace in them), and gaps between small tensors, which quantization leaves,
    fit no large one.
    """
    free, total = torch.cuda.mem_get_info(device)
    share = int(torch.cuda.get_per_process_memory_fraction(device) * total)
    reserved = torch.cuda.memory_reserved(device)
    if torch.cuda.get_allocator_backend() != "native":  # CUDA's own, which shows no blocks
        cached = reserved - torch.cuda.memory_allocated(device)
    else:
        index = torch.cuda.current_device() if device.index is None else device.index
        segments = [segment for segment in torch.cuda.memory_snapshot() if segment["device"] == index]
        blocks = [block for segment in segments if segment["segment_pool_id"] == (0, 0) for block in segment["blocks"]]
        cached = sum(b["size"] for b in blocks if b["state"] == "inactive" and b["size"] >= _LARGE_TENSOR)
    return min(free, share - reserved) + cached


def nvidia_driver() -> str | None:
    """Version of NVIDIA's driver, even if PyTorch cannot use it; None without one."""
    version = Path("/proc/driver/nvidia/version")
    if version.exists():
        found = re.search(r"Kernel Module(?: for \S+)?\s+(\d[\d.]*)", version.read_text(encoding="utf-8"))
        return found[1] if found else "unknown"
    program = shutil.which("nvidia-smi")  # under WSL the driver is the host's
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.split()[0] if asked.returncode == 0 and asked.stdout.strip() else None


def total_ram() -> int | None:
    """Bytes of main memory; None if the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
