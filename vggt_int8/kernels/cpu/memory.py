"""Keeps some of the memory that calls free, so that the next call need not request it from the system.

glibc returns freed blocks to the system, which clears their pages when the next layer requests them: 30,000 page faults
and 5 to 12 % of the time of a call of the embedded model (8 frames). `keep_freed_memory` sets glibc to map only blocks
of 32 MB and more (its own upper limit) and to return memory from 256 MB on. But glibc returns memory only from the end
of its heap: free blocks below one that is in use stay, and after calls of changing sizes they exceed that limit. So
`give_back_surplus` checks after each call and returns all free blocks if they exceed 256 MB.
"""

import ctypes
import functools
import os
import platform
from threading import Lock

LARGEST_BLOCK = 32 << 20  # bytes; glibc always maps larger blocks anew
KEPT_BYTES = 256 << 20  # of freed memory, not returned to the system
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's <malloc.h>


class _Mallinfo2(ctypes.Structure):
    """glibc's `struct mallinfo2`, in its order."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")),
    ]


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process keep up to 256 MB of the memory that it frees; returns whether it does. A process-wide setting.

    Has no effect on other C libraries, or if glibc is configured by the environment (`MALLOC_TRIM_THRESHOLD_`,
    `MALLOC_MMAP_THRESHOLD_`, `GLIBC_TUNABLES`), which is the way to opt out.
    """
    configured = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys()
    if configured or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all((mallopt(_M_MMAP_THRESHOLD, LARGEST_BLOCK), mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)))


class _Others:
    """The smallest amount seen of anonymous memory that the C library neither uses nor keeps."""

    lock = Lock()
    bytes: int | None = None


def give_back_surplus() -> bool:
    """Return freed memory to the system if this process keeps more than 256 MB of it; returns whether it did.

    The kept memory is what is resident and unused beyond the amount after the last call: pages that the C library has
    returned still count as its free blocks. Costs 0.04 ms. Does nothing if `keep_freed_memory` has no effect.
    """
    if not keep_freed_memory():
        return False
    with _Others.lock:
        unused = unused_bytes()
        if _Others.bytes is None:
            _Others.bytes = unused - _free_bytes()  # all free blocks are in memory: nothing was given back yet
        if unused - _Others.bytes <= KEPT_BYTES:
            _Others.bytes = min(_Others.bytes, unused)
            return False
        ctypes.CDLL(None).malloc_trim(0)
        _Others.bytes = unused_bytes()
        return True


def unused_bytes() -> int:
    """Anonymous memory of this process outside blocks in use: kept by the C library, or by other allocators."""
    with open("/proc/self/statm", encoding="ascii") as file:
        _, resident, of_files, *_ = (int(pages) for pages in file.read().split())
    found = _mallinfo()
    in_use = 0 if found is None else found.uordblks + found.hblkhd
    return (resident - of_files) * os.sysconf("SC_PAGESIZE") - in_use


def _free_bytes() -> int:
    found = _mallinfo()
    return 0 if found is None else int(found.fordblks)


def _mallinfo() -> _Mallinfo2 | None:
    """None before glibc 2.33; blocks in use then count as unused, so memory is returned more often."""
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return None
    mallinfo2.restype = _Mallinfo2
    found: _Mallinfo2 = mallinfo2()
    return found
