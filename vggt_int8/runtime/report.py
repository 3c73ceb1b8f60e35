"""How a call ran."""

from dataclasses import dataclass

from vggt_int8.global_attention import GlobalAttention
from vggt_int8.runtime.memory import Plan


@dataclass(frozen=True)
class RuntimeReport:
    """How the last call ran, and why.

    mode: "fused, CUDA graph", "fused", "plain" (the network's own modules), or "none" before the first call.
    reason: why it was not fused or not replayed; empty if it was.
    plan: how much it worked on at a time.
    attention: what its global blocks attended to; key frames that include all frames count as "exact".
    attention_kernels: the kernels of attention in global blocks, usually one, such as "Triton 128x64 w8 s3 tma frozen"
        or "PyTorch flash_attention".
    graphs: image shapes for which a graph is held.
    shards: frames per process, if the scene was sharded.
    """

    mode: str
    reason: str
    plan: Plan | None
    attention: GlobalAttention | None
    graphs: tuple[tuple[int, ...], ...] = ()
    shards: tuple[int, ...] = ()
    attention_kernels: tuple[str, ...] = ()

    @property
    def attention_in_words(self) -> str:
        """What global blocks looked at, and by which kernels."""
        return str(self.attention) + (f", by {' and '.join(self.attention_kernels)}" if self.attention_kernels else "")

    def __str__(self) -> str:
        lines = [self.mode + (f" ({self.reason})" if self.reason else "")]
        lines += [f"global attention: {self.attention_in_words}"] * (self.attention is not None)
        lines += [f"frames of each process: {', '.join(map(str, self.shards))}"] * bool(self.shards)
        lines += [str(self.plan)] * (self.plan is not None)
        return "\n".join(lines + [f"CUDA graph for images {list(shape)}" for shape in self.graphs])
