"""Tokens that the aggregator keeps for the heads: on the device or on the host, whole or in pieces.

The result of a layer is its frame and its global tokens side by side. Both exist as tensors of their own anyway, so
they are kept as two halves, which costs no copy; whoever reads them joins the frames it works on. In long scenes they
are copied into pieces of some frames, since blocks can then write in place, and the heads give back what they have
read; the copies cost some thousandth of the time.
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
    def copied(cls, x: Tensor, on_host: bool) -> "Half":
        """Copies of x [F, P, C]; on the host of a GPU in pinned memory, in order with the work of x's stream."""
        if on_host and not x.is_cuda:
            return cls([x.cpu().clone()])
        size = max(1, PIECE_BYTES // (x[0].numel() * x.element_size()))
        if not on_host:
            return cls([part.clone() for part in x.split(size)])
        pieces = []
        for part in x.split(size):
            pieces.append(torch.empty(part.shape, dtype=part.dtype, pin_memory=True))
            pieces[-1].copy_(part, non_blocking=True)
        return cls(pieces)

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
