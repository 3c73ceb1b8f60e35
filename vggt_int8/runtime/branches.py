"""Independent parts of a call as parallel branches of its CUDA graph.

The camera head is some three hundred small kernels in a row, and with few frames neither do the maps of a dense head
fill a GPU. What waits for nothing but the aggregator can run side by side.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

# Whether there are branches at all; benchmarks time both.
BRANCHES = True


@contextmanager
def branches(device: torch.device) -> Iterator[Callable[[], AbstractContextManager[object]]]:
    """Gives `beside`: what runs in `with beside():` may run at the same time as all that follows in the block.

    At the end of the block everything is waited for. Tensors from outside that a branch reads must live until then, or
    their memory is used again too early. Branches exist only while a graph is captured; otherwise everything runs in
    order, since the host, not the GPU, is late then, and each stream would keep memory of its own.
    """
    used: list[torch.cuda.Stream] = []

    def beside() -> AbstractContextManager[object]:
        if not (BRANCHES and device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
            return nullcontext()
        stream = _stream(device, len(used))
        stream.wait_stream(torch.cuda.current_stream(device))
        used.append(stream)
        return torch.cuda.stream(stream)

    try:
        yield beside
    finally:
        for stream in used:  # also after an error: a capture that is left with open branches hides it behind its own
            torch.cuda.current_stream(device).wait_stream(stream)


@functools.cache
def _stream(device: torch.device, number: int) -> torch.cuda.Stream:
    """One for all graphs: libraries keep a workspace for each stream that they have seen."""
    return torch.cuda.Stream(device)
