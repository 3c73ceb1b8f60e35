"""The benchmark's only timer, with peak memory and a table of kernels.

Times are device times: a pair of CUDA events around each call, `perf_counter` on a CPU. Inputs alternate, so that no
call finds the inputs of the previous one in the cache.
"""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_CACHE = 128 << 20  # bytes; inputs that take turns hold more than any GPU's L2
MOST_INPUTS = 8
WARM_UPS = 3
FEWEST_RUNS = 5


@dataclass(frozen=True)
class Timing:
    """Milliseconds a call: median, 20th and 80th percentile (None after a single run), and the number of runs."""

    ms: float
    low: float | None
    high: float | None
    runs: int


def time_calls(call: Callable[[Tensor], object], inputs: Sequence[Tensor], seconds: float) -> Timing:
    """Time `call` on the inputs in turn for about `seconds`, after warming up.

    A call that takes longer than `seconds` by itself is timed twice, without further warming up: the caller has run it
    before, for its result. All others are warmed up three times and timed at least five times.
    """
    samples = [_sample(call, inputs[0])]
    if samples[0] < seconds * 1e3:
        for i in range(1, WARM_UPS):
            _sample(call, inputs[i % len(inputs)])
        samples = []
    fewest = FEWEST_RUNS if not samples else 2
    while len(samples) < fewest or sum(samples) < seconds * 1e3:
        samples.append(_sample(call, inputs[len(samples) % len(inputs)]))
    low, *_, high = statistics.quantiles(samples, n=5, method="inclusive")
    return Timing(statistics.median(samples), low, high, len(samples))


def inputs_that_fill_the_cache(images: Tensor) -> list[Tensor]:
    """`images` and as many other ones of its shape as are larger than the GPU's cache together."""
    size = images.numel() * images.element_size()
    count = min(MOST_INPUTS, -(-LARGEST_CACHE // size))
    return [images, *(images.roll(i, dims=-1) for i in range(1, count))]


def _sample(call: Callable[[Tensor], object], x: Tensor) -> float:
    if not x.is_cuda:
        before = time.perf_counter()
        call(x)
        return (time.perf_counter() - before) * 1e3
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call(x)
    end.record()
    end.synchronize()
    elapsed: float = start.elapsed_time(end)
    return elapsed


class PeakMemory:
    """The most memory of a CUDA device from `start` on, in GiB, with what was there before.

    allocated: by tensors. reserved: by PyTorch, what it keeps for later and in CUDA graphs included. On a CPU there is
    no such count (the process's resident memory holds everything it ever loaded): None.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start()

    def start(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def read(self) -> dict[str, float | None]:
        """{"peak_gib": allocated, "reserved_gib": reserved}."""
        on_cuda = self.device.type == "cuda"
        return {
            "peak_gib": torch.cuda.max_memory_allocated(self.device) / 2**30 if on_cuda else None,
            "reserved_gib": torch.cuda.max_memory_reserved(self.device) / 2**30 if on_cuda else None,
        }


def release(device: torch.device) -> None:
    """Give GPU memory back that nothing refers to any more. On a CPU, whose memory is not counted, do nothing."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def kernel_table(call: Callable[[Tensor], object], images: Tensor) -> str:
    """The kernels of one warm call (on a CPU: the operators), the longest first."""
    on_cuda = images.is_cuda
    activity = torch.profiler.ProfilerActivity
    call(images)
    if on_cuda:
        torch.cuda.synchronize(images.device)
    with torch.profiler.profile(activities=[activity.CUDA if on_cuda else activity.CPU]) as profiler:
        call(images)
        if on_cuda:
            torch.cuda.synchronize(images.device)
    times = {
        event.key: (event.self_device_time_total if on_cuda else event.self_cpu_time_total, event.count)
        for event in profiler.key_averages()
    }
    total = sum(us for us, _ in times.values()) or 1.0
    lines = [f"{total / 1e3:.2f} ms of kernels", f"{'ms':>9s} {'share':>6s} {'calls':>6s} {'us each':>8s}  kernel"]
    for key, (us, count) in sorted(times.items(), key=lambda item: -item[1][0]):
        lines.append(f"{us / 1e3:9.3f} {us / total:6.1%} {count:6d} {us / count:8.1f}  {key[:160]}")
    return "\n".join(lines) + "\n"
