"""Forward, losses and backward of a training step as CUDA graphs, and averaging of gradients over processes.

A small network keeps the GPU busy for less time than Python needs to launch its thousands of kernels. So a step is
captured once per batch shape and then replayed with new data in the captured tensors. Rendering and the optimizers stay
outside: they are launched while the GPU is busy with the replay.
"""

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Losses = dict[str, Tensor]

EAGER_STEPS = 2  # of a shape before it is recorded: compilers and libraries have to be through with their choices


class _Recorded(NamedTuple):
    graph: torch.cuda.CUDAGraph
    batch: Any
    losses: Losses
    gradients: list[Tensor | None]


class CapturedBackward:
    """`compute(batch)` must return the losses and leave gradients in `parameters`, whose `.grad` is None before.

    A batch is a dataclass of tensors, or None, whose `images` [B, S, 3, H, W] determine its shape. The same holds for a
    call of this object. Its results are overwritten by the next call.
    """

    def __init__(self, compute: Callable[[Any], Losses], parameters: Iterable[nn.Parameter]) -> None:
        self._compute = compute
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()
        self._eager: dict[tuple[int, ...], int] = {}
        self._recorded: dict[tuple[int, ...], _Recorded] = {}

    def __call__(self, batch: Any) -> Losses:
        shape = tuple(batch.images.shape)
        done = self._eager.get(shape, 0)
        if done < EAGER_STEPS:
            self._eager[shape] = done + 1
            return self._on_side_stream(batch)
        if shape not in self._recorded:
            self._recorded[shape] = self._record(batch)
        recorded = self._recorded[shape]
        for field in fields(batch):
            kept, new = getattr(recorded.batch, field.name), getattr(batch, field.name)
            if kept is not None:
                kept.copy_(new)
        recorded.graph.replay()
        for parameter, gradient in zip(self._parameters, recorded.gradients, strict=True):
            parameter.grad = gradient
        return recorded.losses

    def _on_side_stream(self, batch: Any) -> Losses:
        """Like a capture, this must not run on the default stream, since autograd remembers streams."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            losses = self._compute(batch)
        torch.cuda.current_stream().wait_stream(self._stream)
        return losses

    def _record(self, batch: Any) -> _Recorded:
        given = {field.name: getattr(batch, field.name) for field in fields(batch)}
        static = replace(batch, **{name: value.clone() for name, value in given.items() if value is not None})
        graph = torch.cuda.CUDAGraph()
        # thread_local: threads of the data loader pin memory meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            losses = self._compute(static)
        gradients = [parameter.grad for parameter in self._parameters]
        return _Recorded(graph, static, losses, gradients)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over all processes, in one reduction. All must have the same gradients."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    together = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(together)
    together /= torch.distributed.get_world_size()
    pieces = together.split([gradient.numel() for gradient in gradients])
    means = [piece.view(gradient.shape) for piece, gradient in zip(pieces, gradients, strict=True)]
    torch._foreach_copy_(gradients, means)
