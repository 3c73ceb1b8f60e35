"""Tokens that the aggregator keeps for the heads: on the device or on the host, whole or in pieces.

The result of a layer is the concatenation of its frame tokens and its global tokens. Both already exist as separate
tensors, so they are kept as two halves without a copy, and readers concatenate the frames they work on. For long scenes
they are copied into pieces of some frames each: blocks can then write in place, and the heads free what they have read.
By their size, the copies cost about a thousandth of the time.
"""

from typing import NamedTuple

import torch
from torch import Tensor

PIECE_BYTES = 128 << 20  # a power of two, to which PyTorch rounds up pinned allocations


class Half:
    """One half of a layer's tokens, [F, P, C], F = B * S frames."""

    def __init__(self, pieces: list[Tensor]) -> None:
        self._pieces: list[Tensor | None] = [*pieces]
        self._starts = [0]
        for piece in pieces:
            self._starts.append(self._starts[-1] + len(piece))

    @property
    def count(self) -> int:
        """F."""
        return self._starts[-1]

    @classmethod
    def empty(cls, like: Tensor, shape: tuple[int, int, int], on_host: bool) -> "Half":
        """Uninitialized pieces for tokens [F, P, C] with the dtype and device of `like`, or in (pinned) host memory if
        `on_host`.

        On a GPU, allocate them before the rest of a call: allocated later, they would fragment memory that is freed
        again.
        """
        frames, per_frame, channels = shape
        size = max(1, PIECE_BYTES // (per_frame * channels * like.element_size()))
        counts = [min(size, frames - first) for first in range(0, frames, size)]
        device, pinned = torch.device("cpu") if on_host else like.device, on_host and like.is_cuda
        sizes = [(count, per_frame, channels) for count in counts]
        return cls([torch.empty(one, device=device, dtype=like.dtype, pin_memory=pinned) for one in sizes])

    def fill(self, x: Tensor) -> "Half":
        """Copy x [F, P, C] into the pieces, on the current stream."""
        for start, piece in zip(self._starts, self._pieces, strict=False):
            assert piece is not None
            piece.copy_(x[start : start + len(piece)], non_blocking=True)
        return self

    def of(self, frames: slice, device: torch.device) -> Tensor:
        """The tokens of some frames, on `device`."""
        found = []
        for start, end, piece in zip(self._starts, self._starts[1:], self._pieces, strict=False):
            if start < frames.stop and frames.start < end:
                assert piece is not None, "which was given back"
                part = piece[max(0, frames.start - start) : frames.stop - start]
                found.append(part.to(device, non_blocking=True))
        return found[0] if len(found) == 1 else torch.cat(found)

    def forget(self, before: int) -> None:
        """Free all pieces that end at or before frame `before`."""
        for i, end in enumerate(self._starts[1:]):
            if end <= before:
                self._pieces[i] = None

    def first_tokens(self, count: int, device: torch.device) -> Tensor:
        """The first `count` tokens of every frame, [F, count, C], on `device`."""
        # Copy whole pieces on the device's stream: the host must not read data whose transfer to it is still pending.
        return torch.cat(
            [piece.to(device, non_blocking=True)[:, :count] for piece in self._pieces if piece is not None]
        )


class Halves(NamedTuple):
    """Both halves of a layer's tokens."""

    frame: Half
    scene: Half

    @classmethod
    def whole(cls, frame: Tensor, scene: Tensor) -> "Halves":
        """From tensors [F, P, C], which are kept without a copy."""
        return cls(Half([frame]), Half([scene]))

    def of(self, frames: slice, device: torch.device) -> tuple[Tensor, Tensor]:
        """Both halves of some frames, on `device`."""
        return self.frame.of(frames, device), self.scene.of(frames, device)

    def forget(self, before: int) -> None:
        """Free the pieces that end at or before frame `before`."""
        self.frame.forget(before)
        self.scene.forget(before)

    def camera_tokens(self, device: torch.device) -> Tensor:
        """The first token of every frame, [F, 2C]."""
        return self.special_tokens(1, device)[:, 0]

    def special_tokens(self, count: int, device: torch.device) -> Tensor:
        """The first `count` tokens of every frame, [F, count, 2C]."""
        return torch.cat([half.first_tokens(count, device) for half in self], dim=-1)
