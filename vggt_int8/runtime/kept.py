"""Tokens that the aggregator keeps for the heads: on the device or on the host, whole or in pieces.

The result of a layer is its frame and its global tokens side by side. Both exist as tensors of their own anyway, so
they are kept as two halves, which costs no copy; whoever reads them joins the frames it works on. In long scenes they
are copied into pieces of some frames, since blocks can then write in place, and the heads give back what they have
read; by their bytes, the copies cost some thousandth of the time.
"""

from typing import NamedTuple

import torch
from torch import Tensor

PIECE_BYTES = 128 << 20  # of host memory that is pinned: a block that PyTorch rounds up to no more


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
    def room(cls, like: Tensor, shape: tuple[int, int, int], on_host: bool) -> "Half":
        """Pieces for copies of tokens [F, P, C] of `like`'s kind; on the host of a GPU in pinned memory.

        On a GPU they are best made before all else of a call: later they would lie among what is freed again, and keep
        it from being used for anything larger.
        """
        frames, per_frame, channels = shape
        size = max(1, PIECE_BYTES // (per_frame * channels * like.element_size()))
        counts = [min(size, frames - first) for first in range(0, frames, size)]
        device, pinned = torch.device("cpu") if on_host else like.device, on_host and like.is_cuda
        sizes = [(count, per_frame, channels) for count in counts]
        return cls([torch.empty(one, device=device, dtype=like.dtype, pin_memory=pinned) for one in sizes])

    def fill(self, x: Tensor) -> "Half":
        """Copy x [F, P, C], in order with the work of its stream."""
        for start, piece in zip(self._starts, self._pieces, strict=False):
            assert piece is not None
            piece.copy_(x[start : start + len(piece)], non_blocking=True)
        return self

    def of(self, frames: slice, device: torch.device) -> Tensor:
        """Some frames, on `device`."""
        found = []
        for start, end, piece in zip(self._starts, self._starts[1:], self._pieces, strict=False):
            if start < frames.stop and frames.start < end:
                assert piece is not None, "which was given back"
                part = piece[max(0, frames.start - start) : frames.stop - start]
                found.append(part.to(device, non_blocking=True))
        return found[0] if len(found) == 1 else torch.cat(found)

    def forget(self, before: int) -> None:
        """Give back all pieces that end before a frame."""
        for i, end in enumerate(self._starts[1:]):
            if end <= before:
                self._pieces[i] = None

    def first_tokens(self, count: int, device: torch.device) -> Tensor:
        """The first so many tokens of every frame, [F, count, C], on `device`."""
        # Whole pieces, in order with the work on the device: the host must not read what is on its way to it.
        return torch.cat(
            [piece.to(device, non_blocking=True)[:, :count] for piece in self._pieces if piece is not None]
        )


class Halves(NamedTuple):
    """Tokens of one layer."""

    frame: Half
    scene: Half

    @classmethod
    def whole(cls, frame: Tensor, scene: Tensor) -> "Halves":
        """Of tensors [F, P, C], which are kept as they are."""
        return cls(Half([frame]), Half([scene]))

    def of(self, frames: slice, device: torch.device) -> tuple[Tensor, Tensor]:
        """Both halves of some frames, on `device`."""
        return self.frame.of(frames, device), self.scene.of(frames, device)

    def forget(self, before: int) -> None:
        """Give back, as far as they are pieces, frames before the one of that number."""
        self.frame.forget(before)
        self.scene.forget(before)

    def camera_tokens(self, device: torch.device) -> Tensor:
        """The first token of every frame, [F, 2C]."""
        return self.special_tokens(1, device)[:, 0]

    def special_tokens(self, count: int, device: torch.device) -> Tensor:
        """The first so many tokens of every frame, [F, count, 2C]."""
        return torch.cat([half.first_tokens(count, device) for half in self], dim=-1)
