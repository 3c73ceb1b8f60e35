"""Runs the C compiler (GCC) once per machine, as Triton's compiler runs on a GPU; `cache.py` keeps the result."""

import contextlib
import errno
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vggt_int8.kernels.cpu import cache
from vggt_int8.machine import cpu_features, cpu_identity

_SOURCES = Path(__file__).with_name("csrc")
_FLAGS = (
    *("-O3", "-march=native", "-mprefer-vector-width=512", "-ffp-contract=off", "-fno-math-errno"),
    *("-fno-trapping-math", "-fno-strict-aliasing", "-fwrapv", "-fopenmp", "-fPIC", "-shared"),
)
_SECONDS_TO_COMPILE = 300


class Unavailable(Exception):
    """The kernels are not available here; the message says why."""


class NoCompiler(Unavailable):
    """There is no compiler, or it or its result does not work."""


def build(flags: Sequence[str] = ()) -> Path:
    """The compiled library in the user's cache, compiled if it is missing or corrupted; see `cache.py`.

    Its name depends on everything that determines it: sources, flags, compiler and CPU. It is written under a temporary
    name first, so concurrent processes do not interfere.
    """
    here = f"{platform.system()} on {platform.machine()}"
    if here != "Linux on x86_64":
        raise Unavailable(f"the compiled kernels are for Linux on x86_64, not {here}")
    if not {"avx2", "fma"} <= cpu_features():
        raise Unavailable("this CPU has no AVX2, which the compiled kernels need")
    compiler = _compiler()
    command = [*compiler, *_FLAGS, *flags]
    version = _run([*compiler, "--version"])
    sources = [path.read_text(encoding="utf-8") for path in sorted(_SOURCES.glob("*.[ch]"))]
    made_from = "\n".join([*command, version, cpu_identity(), *sources])

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
    """The command in CC, or GCC."""
    try:
        named = shlex.split(os.environ.get("CC", ""))
    except ValueError as error:
        raise NoCompiler(f"CC is {os.environ['CC']!r:.60}, no command: {error}") from error
    found = shutil.which(named[0]) if named else shutil.which("gcc") or shutil.which("cc")
    if found is None and named:
        raise NoCompiler(f"CC names {named[0]!r:.60}, which is not there: install it, or unset CC to take gcc")
    if found is None:
        raise NoCompiler("there is no C compiler: install gcc, or name one in CC")
    return [found, *named[1:]]


def _run(command: list[str]) -> str:
    """Output of a compiler. It runs in its own process group, which is killed as a whole if we are interrupted."""
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
