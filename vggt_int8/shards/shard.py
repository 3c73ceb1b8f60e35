"""`FrameShard`: the frames of a scene that this process has, and how it sees those of the others.

All work on tokens is inside frames but for global attention, whose queries look at the keys and values of other frames.
So each process embeds its own frames, makes their keys and values (with key frames: of those among them), and gathers
those of all. In VGGT-1B a frame of 1041 tokens has 4.3 MB of them a layer in 16 bits, 102 MB in 24 layers: of 200
frames on two GPUs each receives 10 GB, 23 ms over NVLink's 450 GB/s, beside some 4.7 s of work; of 1000 on eight, 90 GB
beside some 30 s. So they are gathered as they are, in one piece and before attention, not piece by piece behind it.

Beside them, the processes exchange one camera token a frame (VGGT-Ω: all special tokens) and, for tracks, correlations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vggt_int8.shards.peers import Peers


def share_out(frames: int, processes: int) -> tuple[int, ...]:
    """How many frames each has, in order: as equal as can be, the first ones more; 0 for those beyond the frames."""
    each, more = divmod(frames, processes)
    return tuple(each + (rank < more) for rank in range(processes))


@dataclass(frozen=True, eq=False)
class FrameShard:
    """A call's frames on each of some processes, in order: `counts` of them, by rank.

    peers: None in a rehearsal, which exchanges nothing and leaves the frames of others as memory was.
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
        """Those of this process."""
        first = sum(self.counts[: self.rank])
        return slice(first, first + self.counts[self.rank])

    @property
    def has_first(self) -> bool:
        """Whether the world frame is among them."""
        return self.own.start == 0

    @property
    def at_work(self) -> range:
        """Ranks that have frames."""
        return range(len(self.counts) - self.counts.count(0))

    def rehearsal(self) -> "FrameShard":
        """The same without the others."""
        return FrameShard(None, self.rank, self.counts)

    def key_frames(self, keyframes: int | None) -> tuple[list[int], tuple[int, ...]]:
        """Which of the own frames, by their number among these, all queries look at; and how many of each rank.

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
        """This rank's part [B, n, ...] of a whole [B, N, ...] -> the whole, in the order of frames.

        counts: n of each rank; None where each gives something of all its frames. All ranks that have frames call it.
        Raises `PeerFailed` or `LostProcess`.
        """
        counts = self.counts if counts is None else counts
        whole = own.new_empty(own.shape[0], sum(counts), *own.shape[2:])
        start = sum(counts[: self.rank])
        whole[:, start : start + own.shape[1]] = own
        if self.peers is not None:
            self.peers.meet(whole.nbytes)
            self.peers.exchange_(whole, counts, to=self.at_work)
        return whole
