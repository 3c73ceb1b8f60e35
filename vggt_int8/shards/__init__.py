"""One scene on several processes: each has some of its frames, and they exchange what global attention needs."""

from vggt_int8.shards.peers import LostProcess, PeerFailed, Peers
from vggt_int8.shards.shard import FrameShard, share_out

__all__ = ["FrameShard", "LostProcess", "PeerFailed", "Peers", "share_out"]
