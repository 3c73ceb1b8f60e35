"""The kernels of `csrc/`: compiled once on the machine that runs them, then called through ctypes.

As Triton does on a GPU, this needs a C compiler (GCC). It is asked once, and its result is kept in the user's cache.
Where it is missing, and on CPUs that are no x86 with AVX2, the operators run on PyTorch's own, slower functions:
`unavailable()` says why, a warning does where a compiler would help, and the quantization report names the product.
`VGGT_INT8_CPU_KERNELS=off` asks for that, `=no-amx` for the kernels of CPUs without AMX.
"""

import contextlib
import ctypes
import errno
import functools
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vggt_int8.kernels.cpu import cache
from vggt_int8.kernels.cpu.threads import threads

SETTING = "VGGT_INT8_CPU_KERNELS"
_SOURCES = Path(__file__).with_name("csrc")
_FLAGS = (
    *("-O3", "-march=native", "-mprefer-vector-width=512", "-ffp-contract=off", "-fno-math-errno"),
    *("-fno-trapping-math", "-fno-strict-aliasing", "-fwrapv", "-fopenmp", "-fPIC", "-shared"),
)
_SECONDS_TO_COMPILE = 300
_OUT_OF_MEMORY = 1


class Library(NamedTuple):
    """The loaded kernels; name: what they multiply with."""

    functions: ctypes.CDLL
    name: str

    def call(self, name: str, *arguments: Tensor | float | None) -> None:
        """The function `name` on `threads()` threads. Tensors are passed as their address, None as null.

        Raises MemoryError, naming the function and its operands.
        """
        values = [convert(a) for convert, a in zip(_CONVERTERS[name], arguments, strict=True)]
        if getattr(self.functions, name)(*values, threads()) == _OUT_OF_MEMORY:
            shapes = ", ".join(str(list(a.shape)) for a in arguments if isinstance(a, Tensor))
            raise MemoryError(f"{name} found no memory for what it works on: operands {shapes}")


class Unavailable(Exception):
    """The kernels cannot be had here; the message says why."""


class NoCompiler(Unavailable):
    """There is no compiler, or it or its result does not work."""


def library() -> Library | None:
    """The kernels, compiled by the first call, or None where they cannot be had."""
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
        raise ValueError(f"{SETTING} must be on, off or no-amx, not {setting!r}")
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
    """The library at `path`, with AMX where asked and possible. Its products are tried before it is used."""
    try:
        # What was checked is what is loaded. The descriptor stays open: its number is the library's name from now on.
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


def multiplies_exactly(multiply: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """Whether codes [M, K] times weight [N, K] give the exact int32 sums [M, N] on a CPU.

    Extreme codes over a long K find 16-bit saturation; odd sizes and one row find kernels for special
    shapes.
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


def _multiply(loaded: Library, codes: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    (m, k), n = codes.shape, len(weight)
    out = codes.new_empty(m, n, dtype=torch.int32) if out is None else out
    loaded.call("vi_linear", codes, None, weight, *(None,) * 5, 0, m, n, k, out, None, None, None)
    return out


def build(flags: Sequence[str] = ()) -> Path:
    """The compiled library in the user's cache, made if it is not there yet or is damaged; see `cache.py`.

    Its name depends on all that it was made from: source, flags, compiler and CPU. It is written under another name
    first, so processes that compile at once do not meet.
    """
    here = f"{platform.system()} on {platform.machine()}"
    if here != "Linux on x86_64":
        raise Unavailable(f"the compiled kernels are for Linux on x86_64, not {here}")
    if not {"avx2", "fma"} <= set(_cpu().split()):
        raise Unavailable("this CPU has no AVX2, which the compiled kernels need")
    compiler = _compiler()
    command = [*compiler, *_FLAGS, *flags]
    version = _run([*compiler, "--version"])
    sources = [path.read_text(encoding="utf-8") for path in sorted(_SOURCES.glob("*.[ch]"))]
    made_from = "\n".join([*command, version, _cpu(), *sources])

    def make(path: Path) -> None:
        try:
            _run([*command, str(_SOURCES / "kernels.c"), "-lm", "-o", str(path)])
        except NoCompiler as error:
            if os.strerror(errno.ENOSPC) in str(error):  # the cache's fault rather than the compiler's
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
            raise

    try:
        return cache.kept_or_made(f"cpu-{hashlib.sha256(made_from.encode()).hexdigest()[:20]}.so", make)
    except (OSError, cache.Untrusted) as error:
        raise NoCompiler(str(error)) from error


def _compiler() -> list[str]:
    """The command that is in CC, or GCC."""
    try:
        named = shlex.split(os.environ.get("CC", ""))
    except ValueError as error:
        raise NoCompiler(f"CC is {os.environ['CC']!r}, no command: {error}") from error
    found = shutil.which(named[0]) if named else shutil.which("gcc") or shutil.which("cc")
    if found is None and named:
        raise NoCompiler(f"CC names {named[0]!r}, which is not there: install it, or unset CC to take gcc")
    if found is None:
        raise NoCompiler("there is no C compiler: install gcc, or name one in CC")
    return [found, *named[1:]]


def _run(command: list[str]) -> str:
    """Output of a compiler, which ends with us: it has children of its own, so it gets a group that is killed whole."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    messages = {**os.environ, "LC_ALL": "C"}
    try:
        with subprocess.Popen(command, **pipes, text=True, errors="replace", env=messages, process_group=0) as process:
            try:
                out, err = process.communicate(timeout=_SECONDS_TO_COMPILE)
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoCompiler(f"{command[0]} does not run: {error}") from error
    if process.returncode:
        raise NoCompiler(f"{command[0]} failed: {err.strip()[:400]}")
    return out


def _cpu() -> str:
    """What `-march=native` looks at: this CPU's model and its instruction sets."""
    keys = ("vendor_id", "cpu family", "model", "model name", "flags")
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return "\n".join(sorted({line for line in lines if line.split(":")[0].strip() in keys}))


def _address(argument: Tensor | int | None) -> int | None:
    return argument.data_ptr() if isinstance(argument, Tensor) else argument


# Arguments of the functions in `csrc/`: p a pointer or null, q a 64-bit integer, i an int, f a float. All but
# `vi_init` end with the number of threads, which `Library.call` adds. Sizes are tensors while `torch.jit.trace` runs.
_KINDS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "p": (ctypes.c_void_p, _address),
    "q": (ctypes.c_int64, int),
    "i": (ctypes.c_int, int),
    "f": (ctypes.c_float, float),
}
_SIGNATURES = {
    "vi_quantize_rows": "pqqppp",
    "vi_layer_norm_quantize": "pqqppfppp",
    "vi_layer_norm_halves": "ppqqqqppfp",
    "vi_qk_norm_rope": "pqqqpppppqf",
    "vi_resize": "pqqqqqqppppp",
    "vi_linear": "ppppppppiqqqpppp",
    "vi_predict": "pqqppqipp",
    "vi_weight_only": "pqqpppqp",
    "vi_conv": "pppppiqqqqqqqqqqqpp",
    "vi_attention": "ppppqqqqqqq",
}
_CONVERTERS = {name: [_KINDS[kind][1] for kind in kinds] for name, kinds in _SIGNATURES.items()}
_MAX_OUTPUTS = 8  # of a dense head


def call(name: str, *arguments: Tensor | float | None) -> None:
    """`Library.call` of the library that is there; only where `library()` is not None."""
    found = library()
    assert found is not None
    found.call(name, *arguments)


def usable(*tensors: Tensor | None) -> bool:
    """Whether the kernels are there and take these tensors: fp32, on a CPU and contiguous."""
    fits = (t is None or (t.dtype == torch.float32 and t.device.type == "cpu" and t.is_contiguous()) for t in tensors)
    return all(fits) and library() is not None


def as_floats(*tensors: Tensor | None) -> list[Tensor | None]:
    """Parameters as contiguous fp32. Keep them until the call is over."""
    return [t if t is None else t.float().contiguous() for t in tensors]


def quantize_rows(x: Tensor, input_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """`reference.quantize_rows` for x that is `usable`."""
    codes, scale = x.new_empty(x.shape, dtype=torch.int8), x.new_empty(len(x), 1)
    call("vi_quantize_rows", x, *x.shape, input_scale, codes, scale)
    return codes, scale


def layer_norm_quantize(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, input_scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`reference.layer_norm_quantize` for x that is `usable`."""
    codes, scale = x.new_empty(x.shape, dtype=torch.int8), x.new_empty(len(x), 1)
    floats = as_floats(weight, bias)
    call("vi_layer_norm_quantize", x, *x.shape, *floats, eps, input_scale, codes, scale)
    return codes, scale


def layer_norm_halves(first: Tensor, second: Tensor, skip: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`reference.layer_norm_halves` for first and second that are `usable`."""
    frames, tokens, channels = first.shape
    out = first.new_empty(frames, tokens - skip, 2 * channels)
    floats = as_floats(weight, bias)
    call("vi_layer_norm_halves", first, second, frames, tokens, skip, channels, *floats, eps, out)
    return out


def qk_norm_rope_(
    qkv: Tensor, q_weight: Tensor, q_bias: Tensor, k_weight: Tensor, k_bias: Tensor, rope: Tensor, eps: float
) -> None:
    """`reference.qk_norm_rope` in place for qkv that is `usable`."""
    tokens, _, heads, dim = qkv.shape
    floats = as_floats(q_weight, q_bias, k_weight, k_bias, rope)
    call("vi_qk_norm_rope", qkv, tokens, heads, dim, *floats, rope.shape[1], eps)


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
    out: Tensor,
    x_codes: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    gelu: bool,
    gamma: Tensor | None,
    residual: Tensor | None,
    out_scale: Tensor | None,
) -> None:
    """`reference.int8_gemm` into out: fp32, or int8 with an out_scale. out and residual are `usable`."""
    (m, k), n = x_codes.shape, len(weight)
    codes, stored = x_codes.contiguous(), weight.contiguous()
    scales, parameters = as_floats(x_scale, weight_scale), as_floats(bias, gamma)
    results = (None, out, None, None) if out_scale is None else (None, None, out, None)
    operands = (codes, scales[0], stored, scales[1], *parameters, residual, out_scale, int(gelu))
    call("vi_linear", *operands, m, n, k, *results)


def int8_gemm_quantize(
    x_codes: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, gelu: bool
) -> tuple[Tensor, Tensor]:
    """`reference.int8_gemm_quantize` of an fp32 result."""
    (m, k), n = x_codes.shape, len(weight)
    codes, stored = x_codes.contiguous(), weight.contiguous()
    scales = as_floats(x_scale, weight_scale, bias)
    out, row_scale = codes.new_empty(m, n), codes.new_empty(m, 1, dtype=torch.float32)
    operands = (codes, scales[0], stored, scales[1], scales[2], None, None, None, int(gelu))
    call("vi_linear", *operands, m, n, k, None, None, out, row_scale)
    return out, row_scale


def int8_matmul_(out: Tensor, x_codes: Tensor, weight: Tensor) -> None:
    """`reference.int8_matmul` into out, contiguous int32."""
    found = library()
    assert found is not None
    _multiply(found, x_codes.contiguous(), weight.contiguous(), out)


def predict_(
    x: Tensor, weight: Tensor, bias: Tensor | None, inverse_log: bool, values: Tensor, confidence: Tensor
) -> bool:
    """`reference.predict` of x that is `usable` into values and confidence. False: not for so many outputs."""
    outputs, channels = weight.shape
    if outputs > _MAX_OUTPUTS:
        return False
    floats = as_floats(weight, bias)
    call("vi_predict", x, confidence.numel(), channels, *floats, outputs, int(inverse_log), values, confidence)
    return True


def w8a16_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """`reference.w8a16_linear` of few rows that are `usable`."""
    (m, k), n = x.shape, len(weight)
    out, stored, floats = x.new_empty(m, n), weight.contiguous(), as_floats(weight_scale, bias)
    call("vi_weight_only", x, m, k, stored, *floats, n, out)
    return out
