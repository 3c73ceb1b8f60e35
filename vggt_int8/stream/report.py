"""The report of a stream: seams and their drift, loops, timing."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from vggt_int8.stream.align import Drift


@dataclass(frozen=True)
class Seam:
    """Between window `window` - 1 and `window`, whose first frame is `first`."""

    window: int
    first: int
    drift: Drift


@dataclass(frozen=True)
class Loop:
    """A place that was seen again.

    frames: one of each visit, the most similar ones.
    likeness: cosine similarity of their descriptors, -1 to 1.
    seen: the share of pixels of either visit that are where the other one sees them.
    closed: whether that was enough.
    """

    windows: tuple[int, int]
    frames: tuple[int, int]
    likeness: float
    seen: float
    closed: bool


@dataclass
class StreamReport:
    """Grows while the stream runs.

    seconds: of the network ("reconstruct"), of aligning windows ("align"), of detecting loops ("loops"), and from the
        first frame taken to the last one returned ("all").
    latencies: in seconds, from the time that a frame left the source to its result.
    """

    window: int
    overlap: int
    frames: int = 0
    windows: int = 0
    seams: list[Seam] = field(default_factory=list)
    loops: list[Loop] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)
    resumed_at: int | None = None  # frames that an earlier run had finished
    residual: dict[str, float] | None = None  # of the pose graph: how far measurements were off before and after

    @property
    def frames_per_second(self) -> float | None:
        """Frames returned by this process, divided by the elapsed time."""
        return len(self.latencies) / self.seconds["all"] if self.seconds.get("all") else None

    def add_seconds(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def to_document(self) -> dict[str, Any]:
        """JSON-ready; null where nothing was measured, as in a run that only resumes to write."""
        late = np.array(self.latencies)
        quantiles = {"median": 0.5, "p95": 0.95, "largest": 1.0}
        return {
            "window": self.window,
            "overlap": self.overlap,
            "frames": self.frames,
            "windows": self.windows,
            "resumed_at": self.resumed_at,
            "frames_per_second": self.frames_per_second,
            "latency_seconds": {
                name: float(np.quantile(late, part)) if len(late) else None for name, part in quantiles.items()
            },
            "seconds": {name: round(value, 4) for name, value in self.seconds.items()},
            "seams": [{"window": s.window, "first_frame": s.first, **s.drift.to_document()} for s in self.seams],
            "loops": [asdict(loop) for loop in self.loops],
            "pose_graph": self.residual,
        }  # fmt: skip
