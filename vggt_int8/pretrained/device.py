"""The device and dtype in which a model computes."""

from typing import Any

import torch

from vggt_int8.quant.backends import BackendError

_DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "double": torch.float64,
    "float": torch.float32,
    "half": torch.float16,
}


def execution_device_type(device_map: Any) -> str:
    """Where layers compute under a device map, "cuda" or "cpu"; offloaded ones compute on the GPU if there is one."""
    places = list(device_map.values()) if isinstance(device_map, dict) else [device_map]
    automatic = {"auto", "balanced", "balanced_low_0", "sequential"}
    if any(isinstance(p, int) or str(p).startswith("cuda") for p in places):
        return "cuda"
    return "cuda" if any(str(p) in automatic for p in places) and torch.cuda.is_available() else "cpu"


def check_device(device_map: Any) -> None:
    """Raise `BackendError` if a device map asks for CUDA on a machine without it."""
    if execution_device_type(device_map) == "cuda" and not torch.cuda.is_available():
        raise BackendError(
            f"device_map {device_map!r} asks for CUDA, but torch {torch.__version__} sees no CUDA device here: use "
            "device_map='cpu', or install a CUDA build of torch and check nvidia-smi"
        )


def compute_dtype(dtype: Any, former: Any, device_map: Any) -> torch.dtype:
    """The compute dtype from `dtype=`, or from its former name `torch_dtype=`; by default that of the device.

    Raises TypeError for anything but a supported floating-point dtype, and if both are given and differ.
    """
    given = [_as_dtype(value) for value in (dtype, former) if value is not None and value != "auto"]
    if len(set(given)) > 1:
        raise TypeError(f"dtype={dtype!r} and torch_dtype={former!r} differ: pass dtype alone")
    if given:
        return given[0]
    return torch.float16 if execution_device_type(device_map) == "cuda" else torch.float32


def _as_dtype(value: Any) -> torch.dtype:
    dtype = _DTYPES.get(value.removeprefix("torch.")) if isinstance(value, str) else value
    if isinstance(dtype, torch.dtype) and dtype in _DTYPES.values():
        return dtype
    why = "; one dtype holds for the whole network" if isinstance(value, dict) else ""
    raise TypeError(
        f"dtype is {value!r:.80}{why}: choose torch.float16, torch.bfloat16, torch.float32, torch.float64, or the name "
        "of one, or 'auto'"
    )
