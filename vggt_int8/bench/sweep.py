"""One run: variants times numbers of frames, one row each; if a row fails, it says why and the sweep continues."""

import gc
import re
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vggt_int8.bench.baselines import Network
from vggt_int8.bench.cost import Ceilings, WorkCounter, measure_ceilings
from vggt_int8.bench.expected import Errors, Expected, compare, expected_outputs
from vggt_int8.bench.records import FORMAT, Row, identity
from vggt_int8.bench.source import Source
from vggt_int8.bench.timing import PeakMemory, inputs_that_fill_the_cache, kernel_table, release, time_calls
from vggt_int8.bench.variants import Variant
from vggt_int8.export.report import describe_machine, installed_versions
from vggt_int8.files import write_whole


@dataclass(frozen=True)
class Settings:
    """What to measure.

    seconds: timed work per row; 0 counts only the first call, including all compilation.
    memory_gb: limit of GPU memory for the process (1e9 bytes).
    compile_limit: seconds allowed for the first call of a variant that compiles.
    profile: folder for a table of kernels per row.
    everything: do not skip any variant at many frames.
    """

    frames: tuple[int, ...]
    size: tuple[int, int]
    variants: tuple[Variant, ...]
    seconds: float = 1.0
    memory_gb: float | None = None
    compile_limit: float = 180.0
    profile: Path | None = None
    everything: bool = False
    command: str = ""

    def frames_of(self, variant: Variant) -> tuple[int, ...]:
        return tuple(s for s in self.frames if self.everything or s <= variant.up_to)


class Sweep:
    """`card()` first, then `rows()`."""

    def __init__(self, source: Source, device: torch.device, settings: Settings) -> None:
        self.source, self.device, self.settings = source, device, settings
        self.work = WorkCounter(source.config, settings.size)
        self.ceilings: Ceilings = measure_ceilings(device)
        release(device)
        self._expected: dict[tuple[int, int | None], Expected] = {}
        self._facts = {
            "format": FORMAT,
            "size": list(settings.size),
            "model": source.name,
            "memory_gb": settings.memory_gb,
            "ceilings": vars(self.ceilings),
            "machine": describe_machine(device),
            "versions": installed_versions(),
            "run": _now(),
            "command": settings.command,
        }

    def card(self) -> list[str]:
        """The cost of the work and what this machine can do, before anything is measured."""
        c, (height, width) = self.ceilings, self.settings.size
        weights = sum(tensor.numel() for tensor in self.source.weights.values())
        lines = [
            f"{self.source.name}: {weights / 1e6:.1f} M parameters, images of {height} x {width} pixels",
            f"ceilings here: {c.product:.3g} TFLOP/s {c.dtype} products, {c.int8:.3g} TOPS int8 products, "
            f"{c.attention:.3g} TFLOP/s attention, {c.copy:.4g} GB/s copy",
            f"{'frames':>6s} {'linears':>9s} {'attention':>9s} {'convol.':>9s} TFLOP {'float floor':>12s} "
            f"{'int8 floor':>11s} ms",
        ]
        for s in self.settings.frames:
            w = self.work(s)
            floors = (self.ceilings.floor_ms(w, weights * n, n == 1) for n in (2, 1))
            parts = " ".join(f"{n / 1e12:9.3f}" for n in (w.linears, w.attention, w.convolutions))
            lines.append("{:6d} {} {:>18.2f} {:>11.2f}".format(s, parts, *floors))
        return lines

    def rows(self, done: Collection[tuple[Any, ...]] = ()) -> Iterator[Row]:
        """Measure. `done`: identities of rows that exist already, which are left out."""
        todo = {
            variant: [s for s in self.settings.frames_of(variant) if self._identity(variant, s) not in done]
            for variant in self.settings.variants
        }
        needed = {_compared(variant, s) for variant, frames in todo.items() if not variant.merges for s in frames}
        for keyframes in {keyframes for _, keyframes in needed}:
            counts = sorted(s for s, its in needed if its == keyframes)
            found = expected_outputs(self.source, counts, self.settings.size, self.device, keyframes)
            self._expected |= {(s, keyframes): expected for s, expected in found.items()}
        for variant, frames in todo.items():
            if frames:
                yield from self._rows_of(variant, frames)

    def _identity(self, variant: Variant, frames: int) -> tuple[Any, ...]:
        return identity({**self._facts, "variant": variant.name, "frames": frames})

    def _rows_of(self, variant: Variant, frames: list[int]) -> Iterator[Row]:
        with _memory_limit(self.device, self.settings.memory_gb):
            network: Network | None = None
            reason = ""
            try:
                network = variant.build(self.source, self.device)
            except Exception as error:
                reason = _explain(error)
            release(self.device)
            for s in frames:
                row = self._blank(variant, s)
                if network is None:
                    yield row | {"status": "failed", "reason": reason}
                    continue
                try:
                    row |= self._measure(variant, network, s)
                except Exception as error:
                    row |= {"status": "failed", "reason": _explain(error)}
                release(self.device)
                yield row
            if network is not None:
                network.reset()
            del network
        gc.collect()  # on a CPU, too: compiled and captured networks refer to themselves
        release(self.device)

    def _blank(self, variant: Variant, frames: int) -> Row:
        nothing = dict.fromkeys(("ms", "ms_low", "ms_high", "first_s", "peak_gib", "reserved_gib", "weights_gib"))
        nothing |= dict.fromkeys(("tflop", "floor_ms", "share"))
        about = {"variant": variant.name, "title": variant.title, "frames": frames, "date": _now(), "runs": 0}
        result = {"status": "failed", "reason": "", "compared_with": "", "errors": {}, "mode": ""}
        return {**self._facts, **about, **nothing, **result}

    def _measure(self, variant: Variant, network: Network, frames: int) -> Row:
        """First the outputs' errors, then memory and time, of warm calls. A wrong result gets no time."""
        settings, expected = self.settings, Expected("", {})
        if not variant.merges:
            expected = self._expected[_compared(variant, frames)]
        images = self.source.images(frames, settings.size, self.device)
        network.reset()
        peak, start = PeakMemory(self.device), time.perf_counter()
        with _time_limit(settings.compile_limit if variant.compiles else None):
            outputs = network(images)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        first_s = time.perf_counter() - start
        errors, wrong = compare(expected, outputs)
        del outputs
        work = self.work(frames, variant.keyframes)
        floor_ms = self.ceilings.floor_ms(work, network.weight_bytes, variant.int8)
        row: Row = {
            "status": "ok",
            "compared_with": expected.by,
            "errors": errors,
            "first_s": first_s,
            "ms": first_s * 1e3,
            "runs": 1,
            **peak.read(),
            "weights_gib": network.weight_bytes / 2**30,
            "tflop": work.total / 1e12,
            "floor_ms": floor_ms,
        }
        if not wrong and settings.seconds > 0:
            times, errors, wrong = self._timed(network, images, peak, expected, floor_ms)
            row |= {**times, "errors": errors}
        row |= {"mode": network.mode(), "share": floor_ms / row["ms"]}
        if variant.merges:  # how much of the work it does is not known
            row |= dict.fromkeys(("tflop", "floor_ms", "share"))
        if wrong:
            nothing = dict.fromkeys(("ms", "ms_low", "ms_high", "share"))
            return {**row, **nothing, "runs": 0, "status": "wrong", "reason": wrong}
        if settings.profile is not None:
            _write_profile(settings.profile / _file_name(variant, frames), network, images)
        return row

    def _timed(
        self, network: Network, images: Tensor, peak: PeakMemory, expected: Expected, floor_ms: float
    ) -> tuple[Row, Errors, str]:
        """Time and memory, and the errors of a call as it is timed: a replayed CUDA graph, say, not the first call.

        Memory comes first, with one set of images: those that take turns for the time are no part of the work.
        """
        kept: list[Mapping[str, Tensor]] = []

        def call(x: Tensor) -> None:
            kept.clear()  # before the next call makes its own, so that no two exist at once
            kept.append(network(x))

        seconds = self.settings.seconds
        release(self.device)
        peak.start()
        if floor_ms < seconds * 1e3:  # may be captured in a CUDA graph, which happens in the second call
            call(images)
        timing = time_calls(call, [images], 0.0)
        memory = peak.read()
        errors, wrong = compare(expected, kept.pop())
        if timing.ms < seconds * 1e3 and not wrong:
            timing = time_calls(call, inputs_that_fill_the_cache(images), seconds)
        times = {"ms": timing.ms, "ms_low": timing.low, "ms_high": timing.high, "runs": timing.runs}
        return {**times, **memory}, errors, wrong


def _compared(variant: Variant, frames: int) -> tuple[int, int | None]:
    """What outputs are compared with: frames, and key frames if they are fewer."""
    keyframes = variant.keyframes
    return frames, None if keyframes is None or keyframes >= frames else keyframes


def _file_name(variant: Variant, frames: int) -> str:
    """Without what a name may have and not every file system: the colon, and the path of a recipe's file."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', variant.name)}-{frames}.txt"


def _write_profile(file: Path, network: Callable[[Tensor], object], images: Tensor) -> None:
    write_whole(file, kernel_table(network, images))


def _explain(error: Exception) -> str:
    """One line. What PyTorch adds to out-of-memory errors about its allocator is left out."""
    text = " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of memory: {text.split(' Of the allocated memory')[0]}"[:400]
    return f"{type(error).__name__}: {text}"[:400]


@contextmanager
def _memory_limit(device: torch.device, gigabytes: float | None) -> Iterator[None]:
    """Let this process take no more than `gigabytes` (1e9 bytes) of the GPU inside, what it holds included."""
    if gigabytes is None:
        yield
        return
    release(device)
    torch.cuda.set_per_process_memory_fraction(gigabytes * 1e9 / torch.cuda.mem_get_info(device)[1], device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


@contextmanager
def _time_limit(seconds: float | None) -> Iterator[None]:
    """Raise TimeoutError in the block after `seconds`; in the main thread alone, where signals arrive."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"no result after {seconds:g} s of compiling")

    started = time.monotonic()
    handler = signal.signal(signal.SIGALRM, stop)
    others, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if others:  # somebody else's alarm goes on
            signal.setitimer(signal.ITIMER_REAL, max(0.01, others - (time.monotonic() - started)))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
