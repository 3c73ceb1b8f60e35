"""CUDA graphs of a whole call, one per input shape: one launch instead of a thousand.

The first call of a shape runs without a graph and warms up (kernels compile, tables fill, cuDNN makes its plans), the
second is captured, and later ones are replayed; a shape that occurs once costs nothing extra. All graphs share one
memory pool, which needs the memory of the largest graph only. That is safe because graphs run one after the other and
nothing in the pool outlives a replay: inputs live outside, and outputs are copied out.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vggt_int8.kernels.attended import note_again, noting

CAPACITY = 4  # graphs; the least recently used one goes first
REMEMBERED = 64  # shapes seen once

Tensors = dict[str, Tensor]


# `torch.cuda.graph` captures on one stream per process and synchronizes the device, which would break a concurrent
# capture.
_CAPTURING = threading.Lock()


class Key(NamedTuple):
    """What identifies a graph: each input's name, shape, strides and dtype, and everything else that determines the
    work.
    """

    inputs: tuple[tuple[str, torch.Size, tuple[int, ...], torch.dtype], ...]
    work: tuple[object, ...]

    @property
    def images(self) -> tuple[int, ...]:
        return next(tuple(shape) for name, shape, *_ in self.inputs if name == "images")


@dataclass
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: Tensors
    outputs: Tensors
    attended: tuple[str, ...] = ()  # what was noted


class GraphCache:
    """Runs functions of tensors through CUDA graphs. One call at a time; calls from other streams wait."""

    def __init__(self) -> None:
        self._graphs: OrderedDict[Key, _Captured] = OrderedDict()
        self._seen: OrderedDict[tuple[Key, int], None] = OrderedDict()
        self._pool: Any = None  # PyTorch's opaque handle
        self._done: torch.cuda.Event | None = None
        self._lock = threading.Lock()

    @property
    def captured(self) -> tuple[Key, ...]:
        """Keys of the captured graphs, least recently used first."""
        return tuple(self._graphs)

    def run(self, function: Callable[[Tensors], Tensors], inputs: Tensors, *work: object) -> tuple[Tensors, bool]:
        """`function(inputs)`, and whether it was replayed. The work must be determined by `work` and the inputs'
        shapes.
        """
        key = _key(inputs, work)
        with self._lock:
            if key not in self._graphs:
                # Per thread: cuDNN keeps its plans per thread and cannot make them during a capture.
                call = (key, threading.get_ident())
                if call not in self._seen:
                    outputs = function(inputs)
                    self._remember(call)  # only now: a failed call is no warm-up
                    return outputs, False
                while len(self._graphs) >= CAPACITY:
                    self._graphs.popitem(last=False)
                with _CAPTURING:
                    self._graphs[key] = self._record(function, inputs)
            return self._replay(key, inputs), True

    def replay(self, inputs: Tensors, *work: object) -> Tensors | None:
        """The result of `run` if there is a graph for it, else None without doing anything."""
        key = _key(inputs, work)
        with self._lock:
            return self._replay(key, inputs) if key in self._graphs else None

    def clear(self) -> None:
        """Drop all graphs and free their memory."""
        with self._lock:
            held = bool(self._graphs)
            self._graphs.clear()
            self._seen.clear()
            self._pool = self._done = None
        if held:
            with _CAPTURING:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()

    def _remember(self, call: tuple[Key, int]) -> None:
        self._seen[call] = None
        while len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)

    def _record(self, function: Callable[[Tensors], Tensors], inputs: Tensors) -> _Captured:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        static = {name: tensor.clone() for name, tensor in inputs.items()}
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads may keep using the GPU (a data loader that pins memory). The outer stream context
        # restores the current stream, which `torch.cuda.graph` does not do if the end of a capture raises.
        here = torch.cuda.stream(torch.cuda.current_stream())
        with noting() as attended, here, torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = function(static)
        return _Captured(graph, static, outputs, tuple(attended))

    def _replay(self, key: Key, inputs: Tensors) -> Tensors:
        captured = self._graphs[key]
        self._graphs.move_to_end(key)
        stream = torch.cuda.current_stream()
        if self._done is not None:
            stream.wait_event(self._done)
        for name, tensor in inputs.items():
            captured.inputs[name].copy_(tensor)
        captured.graph.replay()
        note_again(captured.attended)
        outputs = {name: tensor.clone() for name, tensor in captured.outputs.items()}
        self._done = self._done or torch.cuda.Event()
        self._done.record(stream)
        return outputs


def _key(inputs: Tensors, work: tuple[object, ...]) -> Key:
    return Key(tuple((name, x.shape, x.stride(), x.dtype) for name, x in inputs.items()), work)
