"""How kernels are launched: on the GPU, or only compiled, so that many can compile at once before the first one runs.

A call that meets new kernels compiles them one after another, 0.3 to 2 s each. Inside `compiling()` launchers hand
theirs to threads instead (the compiler works outside of Python's lock), run nothing, and return what they allocated.
"""

import importlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor

THREADS = 8  # more wait for one another: half of a compilation is Python or shared

# Inside `compiling()`: the launches that were handed over already (a network repeats each of them many times) and what
# Triton gave for each, a kernel or its promise of one.
_compiled: ContextVar[dict[object, Any] | None] = ContextVar("vggt_int8_compiled", default=None)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: object, **options: Any) -> None:
    """`kernel[grid](*arguments, **options)`, or inside `compiling()` only its compilation."""
    compiled = _compiled.get()
    if compiled is None:
        kernel[grid](*arguments, **options)
        return
    call = (kernel.__name__, *map(_kind, arguments), *sorted(options.items()))
    if call not in compiled:
        compiled[call] = kernel.warmup(*arguments, grid=grid, **options)


def _kind(argument: Any) -> object:
    """All about an argument that a kernel may be compiled for, and more: numbers count by their value."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16
    if hasattr(argument, "block_shape"):  # a tensor descriptor
        return argument.base.dtype, *argument.block_shape
    return argument


def only_compiling() -> bool:
    """Whether this runs inside `compiling()`, where values are arbitrary."""
    return _compiled.get() is not None


@contextmanager
def compiling() -> Iterator[None]:
    """Kernels launched inside are compiled for their arguments, side by side, and do not run: results are arbitrary.

    All are ready when the block ends. What is in Triton's cache on disk is only loaded. What does not compile is left
    to the launch that needs it, which says why.
    """
    triton = importlib.import_module("triton")  # which only a GPU has need of
    calls: dict[object, Any] = {}
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        with triton.AsyncCompileMode(pool, ignore_errors=True):
            token = _compiled.set(calls)
            try:
                yield
            finally:
                _compiled.reset(token)
        found = (promise.result(True) if hasattr(promise, "result") else promise for promise in calls.values())
        list(pool.map(_build_launcher, set(found) - {None}))


def _build_launcher(kernel: Any) -> None:
    """Build the C function by which Python launches a kernel, into Triton's cache on disk.

    Otherwise the first launch does so, one kernel after another: 18 times a C compiler in VGGT's first call.
    """
    driver = importlib.import_module("triton").runtime.driver.active
    driver.launcher_cls(kernel.src, kernel.metadata)
