"""Kernel launches: on the GPU, or compile-only, so that many kernels compile in parallel before the first one runs.

A call that needs new kernels would compile them one after another, 0.3 to 2 s each. Inside `compiling()`, launchers
submit their kernels to threads (the compiler releases Python's lock), run nothing, and return uninitialized outputs.
"""

import importlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor

THREADS = 8  # more contend for locks: half of a compilation is Python or shared

# Inside `compiling()`: the launches submitted so far (a network repeats each many times), with Triton's result for
# each, a kernel or a future.
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
    """The properties of an argument that a kernel may be specialized for, or more: numbers count by value."""
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
    """Kernels launched inside are compiled for their arguments, in parallel, and do not run: results are arbitrary.

    All are ready when the block ends. Kernels in Triton's disk cache are only loaded. A kernel that does not compile is
    left to the launch that needs it, which raises the error.
    """
    triton = importlib.import_module("triton")  # only needed on a GPU
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
    """Build the C function with which Python launches a kernel, into Triton's disk cache.

    Otherwise the first launch of each kernel builds it: 18 runs of a C compiler in VGGT's first call.
    """
    driver = importlib.import_module("triton").runtime.driver.active
    driver.launcher_cls(kernel.src, kernel.metadata)
