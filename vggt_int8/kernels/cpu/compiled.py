"""The kernels of `csrc/`, compiled by `compiler.py`: loaded once, then called through ctypes.

Without a compiler, and on CPUs other than x86 with AVX2, the operators use PyTorch's own, slower functions:
`unavailable()` says why, a warning is issued if a compiler would help, and the quantization report names the product.
`VGGT_INT8_CPU_KERNELS=off` requests that, `=no-amx` the kernels for CPUs without AMX.
"""

import ctypes
import functools
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vggt_int8.kernels.cpu import cache
from vggt_int8.kernels.cpu.compiler import NoCompiler, Unavailable, build
from vggt_int8.kernels.epilogue import Epilogue
from vggt_int8.kernels.reference import static_scales
from vggt_int8.machine import multiplies_exactly, threads

SETTING = "VGGT_INT8_CPU_KERNELS"
_OUT_OF_MEMORY = 1


class Library(NamedTuple):
    """The loaded kernels. name: the instructions they multiply with."""

    functions: ctypes.CDLL
    name: str

    def call(self, name: str, *arguments: Tensor | float | None, alone: bool = False) -> None:
        """Call the function `name` on `threads()` threads, or with `alone` on this one. Tensors are passed by address,
        None as null.

        Raises MemoryError, naming the function and its operands.
        """
        values = [convert(a) for convert, a in zip(_CONVERTERS[name], arguments, strict=True)]
        if getattr(self.functions, name)(*values, 1 if alone else threads()) == _OUT_OF_MEMORY:
            shapes = ", ".join(str(list(a.shape)) for a in arguments if isinstance(a, Tensor))
            raise MemoryError(f"{name} found no memory for what it works on: operands {shapes}")


def library() -> Library | None:
    """The kernels, compiled by the first call, or None if they are unavailable."""
    loaded = _load()
    return loaded if isinstance(loaded, Library) else None


def unavailable() -> str | None:
    """Why there are no compiled kernels, or None if there are."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


@functools.cache
def _load() -> Library | str:
    setting = os.environ.get(SETTING, "on")
    if setting not in ("on", "off", "no-amx"):
        raise ValueError(f"{SETTING} must be on, off or no-amx, not {setting!r:.60}")
    if setting == "off":
        return f"{SETTING}=off"
    try:
        return load(build(), amx=setting != "no-amx")
    except NoCompiler as error:
        warnings.warn(f"INT8 runs on PyTorch's slower CPU functions: {error}", RuntimeWarning, stacklevel=2)
        return str(error)
    except Unavailable as error:
        return str(error)


def load(path: Path, amx: bool) -> Library:
    """The library at `path`, with AMX if requested and possible. Its products are tested before it is used."""
    try:
        # Load exactly what was checked. The descriptor stays open, since its number is now the library's name.
        functions = ctypes.CDLL(f"/proc/self/fd/{cache.open_checked(path)}")
    except (OSError, ValueError, cache.Untrusted) as error:
        raise NoCompiler(f"{path} cannot be loaded: {error}") from error
    for function, kinds in _SIGNATURES.items():
        getattr(functions, function).argtypes = [_KINDS[kind][0] for kind in (*kinds, "i")]
    units = functions.vi_init(int(amx))
    name = {0: "AVX2", 1: "AVX-512 VNNI", 3: "AMX"}[units]
    loaded = Library(functions, f"compiled kernels on {name}")
    if not multiplies_exactly(functools.partial(_multiply, loaded)):
        raise NoCompiler(f"what {path} multiplies is wrong on this CPU")
    return loaded


def _multiply(loaded: Library, codes: Tensor, weight: Tensor) -> Tensor:
    (m, k), n = codes.shape, len(weight)
    out = codes.new_empty(m, n, dtype=torch.int32)
    loaded.call("vi_linear", codes, None, weight, *(None,) * 5, 0, 0, 0, m, n, k, out, None, None, None)
    return out


def _address(argument: Tensor | int | None) -> int | None:
    return argument.data_ptr() if isinstance(argument, Tensor) else argument


# Arguments of the functions in `csrc/`: p a pointer or null, q a 64-bit integer, i an int, f a float. All but `vi_init`
# end with the number of threads, which `Library.call` adds. Sizes are tensors under `torch.jit.trace`.
_KINDS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "p": (ctypes.c_void_p, _address),
    "q": (ctypes.c_int64, int),
    "i": (ctypes.c_int, int),
    "f": (ctypes.c_float, float),
}
_SIGNATURES = {
    "vi_quantize_rows": "pqqpqqpp",
    "vi_rotate_rows": "pqqqp",
    "vi_layer_norm_quantize": "pqqppfpqqpp",
    "vi_layer_norm_halves": "ppqqqqppfp",
    "vi_norm_rope": "pqqqqqpppppqqf",
    "vi_resize": "pqqqqqqppppp",
    "vi_linear": "ppppppppqiqqqqpppp",
    "vi_predict": "pqqppqipp",
    "vi_weight_only": "pqqpppqp",
    "vi_conv": "pppppiqqqqqqqqqqqpp",
    "vi_attention": "ppppqqqqqqqqqqq",
}
_CONVERTERS = {name: [_KINDS[kind][1] for kind in kinds] for name, kinds in _SIGNATURES.items()}
_MAX_OUTPUTS = 8  # of a dense head


def call(name: str, *arguments: Tensor | float | None, alone: bool = False) -> None:
    """`Library.call` of the loaded library; requires that `library()` is not None."""
    found = library()
    assert found is not None
    found.call(name, *arguments, alone=alone)


def usable(*tensors: Tensor | None) -> bool:
    """Whether the kernels are available and support these tensors: fp32, on a CPU and contiguous."""
    fits = (t is None or (t.dtype == torch.float32 and t.device.type == "cpu" and t.is_contiguous()) for t in tensors)
    return all(fits) and library() is not None


def as_floats(*tensors: Tensor | None) -> list[Tensor | None]:
    """Parameters as contiguous fp32. Keep references to them until the call returns."""
    return [t if t is None else t.float().contiguous() for t in tensors]


def quantize_rows(x: Tensor, input_scale: Tensor | None, rotation: int) -> tuple[Tensor, Tensor]:
    """`reference.quantize_rows` for x that is `usable`."""
    codes, scale = x.new_empty(x.shape, dtype=torch.int8), x.new_empty(len(x), 1)
    call("vi_quantize_rows", x, *x.shape, *_static(input_scale), rotation, codes, scale)
    return codes, scale


def rotate_rows(x: Tensor, rotation: int, alone: bool = False) -> Tensor:
    """`reference.rotate_rows` for x that is `usable`, on this thread only if `alone`."""
    out = x.new_empty(x.shape)
    call("vi_rotate_rows", x, *x.shape, rotation, out, alone=alone)
    return out


def layer_norm_quantize(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, input_scale: Tensor | None, rotation: int
) -> tuple[Tensor, Tensor]:
    """`reference.layer_norm_quantize` for x that is `usable`."""
    codes, scale = x.new_empty(x.shape, dtype=torch.int8), x.new_empty(len(x), 1)
    floats = as_floats(weight, bias)
    call("vi_layer_norm_quantize", x, *x.shape, *floats, eps, *_static(input_scale), rotation, codes, scale)
    return codes, scale


def _static(scale: Tensor | None) -> tuple[Tensor | None, int]:
    """Static scales, which are `usable`, and their number R: row m has number m % R."""
    return scale, 0 if scale is None else scale.numel()


def layer_norm_halves(first: Tensor, second: Tensor, skip: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`reference.layer_norm_halves` for first and second that are `usable`."""
    frames, tokens, channels = first.shape
    out = first.new_empty(frames, tokens - skip, 2 * channels)
    floats = as_floats(weight, bias)
    call("vi_layer_norm_halves", first, second, frames, tokens, skip, channels, *floats, eps, out)
    return out


def qk_norm_rope_(
    qkv: Tensor,
    q_weight: Tensor | None,
    q_bias: Tensor | None,
    k_weight: Tensor | None,
    k_bias: Tensor | None,
    rope: Tensor,
    eps: float,
    rotate_half: bool,
) -> None:
    """`reference.qk_norm_rope` in place for qkv that is `usable`."""
    floats = as_floats(q_weight, q_bias, k_weight, k_bias, rope)
    call("vi_norm_rope", qkv, *qkv.shape, 2, *floats, rope.shape[1], _apart(qkv, rotate_half), eps)


def _apart(x: Tensor, rotate_half: bool) -> int:
    """Distance between the channels of a pair."""
    return x.shape[-1] // (2 if rotate_half else 4)


def norm_rope_(x: Tensor, weight: Tensor, bias: Tensor, rope: Tensor, eps: float) -> None:
    """`reference.norm_rope` in place for x that is `usable`."""
    floats = as_floats(weight, bias, weight, bias, rope)
    call("vi_norm_rope", x, *x.shape, 1, *floats, rope.shape[1], _apart(x, False), eps)


def resize(
    x: Tensor,
    height: int,
    width: int,
    columns: Tensor | None,
    rows: Tensor | None,
    bias: Tensor | None,
    addend: Tensor | None,
) -> Tensor:
    """`reference.resize` for x and addend that are `usable`."""
    frames, _, _, channels = x.shape
    out = x.new_empty(frames, height, width, channels)
    floats = as_floats(columns, rows, bias)
    call("vi_resize", x, *x.shape, height, width, *floats, addend, out)
    return out


def int8_gemm_into_(
    out: Tensor, x_codes: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, epilogue: Epilogue
) -> None:
    """`reference.int8_gemm` into out, which is fp32; out and residual are `usable`."""
    _linear(x_codes, x_scale, weight, weight_scale, epilogue, (None, out, None, None))


def int8_gemm_quantize(
    x_codes: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, epilogue: Epilogue
) -> tuple[Tensor, Tensor]:
    """`reference.int8_gemm_quantize` of an fp32 result. Floats are materialized only for rows with dynamic scales or a
    rotation.
    """
    out = x_codes.new_empty(len(x_codes), len(weight))
    if epilogue.out_scale is None or epilogue.rotation:  # whole rows
        row_scale = x_codes.new_empty(len(x_codes), 1, dtype=torch.float32)
        _linear(x_codes, x_scale, weight, weight_scale, epilogue, (None, None, out, row_scale))
        return out, row_scale
    _linear(x_codes, x_scale, weight, weight_scale, epilogue, (None, None, out, None))
    return out, static_scales(epilogue.out_scale, len(x_codes)) + 0 * x_scale.view(-1, 1)


def _linear(
    x_codes: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    epilogue: Epilogue,
    results: tuple[Tensor | None, ...],
) -> None:
    """results: int32 sums, floats, codes and scales of rows; None for those that are not requested."""
    (m, k), n = x_codes.shape, len(weight)
    bias, _, gelu, gamma, residual, out_scale, rotation = epilogue
    codes, stored = x_codes.contiguous(), weight.contiguous()
    row_scale, column_scale, *parameters = as_floats(x_scale, weight_scale, bias, gamma)
    operands = (codes, row_scale, stored, column_scale, *parameters, residual, *_static(out_scale), int(gelu))
    call("vi_linear", *operands, rotation, m, n, k, *results)


def int8_matmul(x_codes: Tensor, weight: Tensor) -> Tensor:
    """`reference.int8_matmul`."""
    found = library()
    assert found is not None
    return _multiply(found, x_codes.contiguous(), weight.contiguous())


def predict_(
    x: Tensor, weight: Tensor, bias: Tensor | None, inverse_log: bool, values: Tensor, confidence: Tensor
) -> bool:
    """`reference.predict` of x that is `usable` into values and confidence. Returns False if there are too many
    outputs.
    """
    outputs, channels = weight.shape
    if outputs > _MAX_OUTPUTS:
        return False
    floats = as_floats(weight, bias)
    call("vi_predict", x, confidence.numel(), channels, *floats, outputs, int(inverse_log), values, confidence)
    return True


def w8a16_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """`reference.w8a16_linear` for few rows that are `usable`."""
    (m, k), n = x.shape, len(weight)
    out, stored, floats = x.new_empty(m, n), weight.contiguous(), as_floats(weight_scale, bias)
    call("vi_weight_only", x, m, k, stored, *floats, n, out)
    return out
