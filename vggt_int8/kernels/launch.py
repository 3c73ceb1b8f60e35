"""How kernels are launched: on the GPU, or only compiled, so that many can compile at once before the first one runs.

A call that meets new kernels compiles them one after another, 0.3 to 2 s each. Inside `compiling()` launchers hand
theirs to threads instead (the compiler works outside of Python's lock), run nothing, and return what they allocated.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import triton

THREADS = 8  # more wait for one another: half of a compilation is Python or shared

_compile_only: ContextVar[bool] = ContextVar("vggt_int8_compile_only", default=False)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: object, **options: Any) -> None:
    """`kernel[grid](*arguments, **options)`, or inside `compiling()` only its compilation."""
    if _compile_only.get():
        kernel.warmup(*arguments, grid=grid, **options)
    else:
        kernel[grid](*arguments, **options)


@contextmanager
def compiling() -> Iterator[None]:
    """Kernels launched inside are compiled for their arguments, side by side, and do not run: results are arbitrary.

    All are ready when the block ends. What is in Triton's cache on disk is only loaded.
    """
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool, triton.AsyncCompileMode(pool):
        token = _compile_only.set(True)
        try:
            yield
        finally:
            _compile_only.reset(token)
