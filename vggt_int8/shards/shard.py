"""`FrameShard`: the frames of a scene that this process has, and its access to those of the others.

All work on tokens is per frame, except global attention, whose queries attend to the keys and values of other frames.
So each process embeds its own frames, computes their keys and values (with key frames: of those among them), and
gathers those of all. In VGGT-1B a frame of 1041 tokens has 4.3 MB of them per layer in 16 bits, 102 MB in 24 layers:
for 200 frames on two GPUs each receives 10 GB, 23 ms over NVLink's 450 GB/s, beside about 4.7 s of work; for 1000 on
eight, 90 GB beside about 30 s. So they are gathered in one piece before attention, without overlapping the two.

The processes also exchange one camera token per frame (VGGT-Ω: all special tokens) and, for tracks, correlations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vggt_int8.shards.peers import Peers


def share_out(frames: int, processes: int) -> tuple[int, ...]:
    """Number of frames on each process, in order, as equal as possible, larger ones first; 0 for surplus processes."""
    each, more = divmod(frames, processes)
    return tuple(each + (rank < more) for rank in range(processes))


@dataclass(frozen=True, eq=False)
class FrameShard:
    """The frames of a call on each of several processes, in order: `counts` of them, by rank.

    peers: None in a rehearsal, which exchanges nothing and leaves the frames of others uninitialized.
    """

    peers: Peers | None
    rank: int
    counts: tuple[int, ...]

    @property
    def frames(self) -> int:
        """S, of the whole scene."""
        return sum(self.counts)

    @property
    def own(self) -> slice:
        """The frames of this process."""
        first = sum(self.counts[: self.rank])
        return slice(first, first + self.counts[self.rank])

    @property
    def has_first(self) -> bool:
        """Whether they include the world frame."""
        return self.own.start == 0

    @property
    def at_work(self) -> range:
        """Ranks that have frames."""
        return range(len(self.counts) - self.counts.count(0))

    def rehearsal(self) -> "FrameShard":
        """The same shard without communication."""
        return FrameShard(None, self.rank, self.counts)

    def key_frames(self, keyframes: int | None) -> tuple[list[int], tuple[int, ...]]:
        """Indices, among the own frames, of those that all queries attend to; and their number on each rank.

        keyframes: of the scene, as `model.layers.key_frames` chooses them; None for all frames.
        """
        if keyframes is None:
            return [*range(self.counts[self.rank])], self.counts
        chosen = [i * self.frames // keyframes for i in range(keyframes)]
        ends = [sum(self.counts[: rank + 1]) for rank in range(len(self.counts))]
        parts = [slice(end - count, end) for end, count in zip(ends, self.counts, strict=True)]
        counts = tuple(sum(part.start <= frame < part.stop for frame in chosen) for part in parts)
        own = parts[self.rank]
        return [frame - own.start for frame in chosen if own.start <= frame < own.stop], counts

    def gather(self, own: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        """This rank's part [B, n, ...] -> the whole [B, N, ...], in the order of frames.

        counts: n of each rank; None if each contributes all its frames. All ranks that have frames must call it. Raises
            `PeerFailed` or `LostProcess`.
        """
        counts = self.counts if counts is None else counts
        whole = own.new_empty(own.shape[0], sum(counts), *own.shape[2:])
        start = sum(counts[: self.rank])
        whole[:, start : start + own.shape[1]] = own
        if self.peers is not None:
            self.peers.meet(whole.nbytes)
            self.peers.exchange_(whole, counts, to=self.at_work)
        return whole
