"""Collects the maps of a dense head, computed some frames at a time, into one tensor each, on the GPU or on the host.

`add` takes the parts of all maps of a head (values, confidence) in order.
"""

from collections import deque

import torch
from torch import Tensor

WAITING = 2  # parts in transfer to the host while others are computed

Maps = tuple[Tensor, Tensor]


class DeviceMaps:
    """Keeps the parts where they were made and concatenates them at the end. Uses no more memory than the parts
    so far.
    """

    def __init__(self, frames: int, device: torch.device) -> None:
        self._parts: list[list[Tensor]] = [[], []]

    def add(self, part: slice, maps: Maps) -> None:
        for stored, made in zip(self._parts, maps, strict=True):
            stored.append(made)

    def whole(self) -> Maps:
        joined = []
        for stored in self._parts:
            joined.append(stored[0] if len(stored) == 1 else torch.cat(stored))
            stored.clear()
        return joined[0], joined[1]


class HostMaps:
    """Whole tensors on the host. Parts from a GPU are copied through pinned memory while the next ones are computed."""

    def __init__(self, frames: int, device: torch.device) -> None:
        self._frames, self._whole = frames, list[Tensor]()
        self._waiting: deque[tuple[torch.cuda.Event, slice, list[Tensor]]] = deque()

    def add(self, part: slice, maps: Maps) -> None:
        if not self._whole:
            self._whole = [torch.empty(self._frames, *x.shape[1:], dtype=x.dtype) for x in maps]
        if not maps[0].is_cuda:
            self._store(part, list(maps))
            return
        pinned = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in maps]
        for to, x in zip(pinned, maps, strict=True):
            to.copy_(x, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._waiting.append((event, part, pinned))
        while len(self._waiting) > WAITING:
            self._arrive()

    def whole(self) -> Maps:
        while self._waiting:
            self._arrive()
        values, confidence = self._whole
        return values, confidence

    def _arrive(self) -> None:
        event, part, pinned = self._waiting.popleft()
        event.synchronize()
        self._store(part, pinned)

    def _store(self, part: slice, maps: list[Tensor]) -> None:
        for stored, x in zip(self._whole, maps, strict=True):
            stored[part] = x
