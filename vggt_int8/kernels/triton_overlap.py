"""Programmatic dependent launch: a kernel's programs come onto the GPU while those of the kernel before still run.

Otherwise a kernel is only launched when the one before it has ended, in a CUDA graph too: microseconds in which nothing
runs, as long as some of the kernels themselves. Hopper and newer GPUs have the instructions.
"""

# mypy: allow-untyped-defs
# (Triton kernels have no Python types.)

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def after_previous(OVERLAP: tl.constexpr):
    """The first statement of every kernel: nothing below it runs before all earlier kernels have ended.

    The next kernel may be launched from here on. It gets no room before all programs of this one have theirs, and waits
    at this same statement, so that results do not depend on OVERLAP. As every program waits, a kernel ends after the
    one before it: whoever waits for the last has waited for all.
    """
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
