"""Independent parts of a call as parallel branches of its CUDA graph.

The camera head is a chain of about 300 small kernels, and for a few frames the maps of a dense head do not fill a GPU
either. Everything that depends only on the aggregator can run concurrently.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

# Off switch; benchmarks time both settings.
BRANCHES = True


@contextmanager
def branches(device: torch.device) -> Iterator[Callable[[], AbstractContextManager[object]]]:
    """Yields `beside`: work inside `with beside():` may run concurrently with everything that follows in the block.

    The end of the block waits for all branches. Tensors from outside the block that a branch reads must stay alive
    until then, or their memory is reused too early. Branches exist only while a graph is captured. Without a graph
    everything runs in order: there the host is the bottleneck, not the GPU, and every stream would hold memory of its
    own.
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
        for stream in used:  # also after an error, which an unjoined branch would mask
            torch.cuda.current_stream(device).wait_stream(stream)


@functools.cache
def _stream(device: torch.device, number: int) -> torch.cuda.Stream:
    """Shared by all graphs, because libraries keep a workspace for every stream they have seen."""
    return torch.cuda.Stream(device)
