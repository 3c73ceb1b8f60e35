"""Apply the settings to the points and cameras of all reconstructions: only numbers, independent of the browser."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vggt_int8.export.color import Array, Colors
from vggt_int8.viewer.cloud import confidence_colors, difference_colors
from vggt_int8.viewer.difference import Difference, difference_of, why_not_comparable
from vggt_int8.viewer.reconstruction import Reconstruction
from vggt_int8.viewer.settings import TINTS, Settings

GAP = 2.0  # between middles of reconstructions that stand side by side, in extents of the first
UNKNOWN = 128  # gray of points whose number for a colour is not known


@dataclass(frozen=True)
class Shown:
    """Displayed points of one reconstruction. `place` and `scale` transform its world to stage coordinates."""

    points: Array  # [N, 3] in its own world
    colors: Colors  # [N, 3]
    scale: float
    place: NDArray[np.float64]  # [3]

    def on_stage(self) -> Array:
        """[N, 3]: positions on the stage."""
        return self.points * np.float32(self.scale) + self.place.astype(np.float32)


class Stage:
    """All reconstructions. The others are compared with the first."""

    def __init__(self, reconstructions: Sequence[Reconstruction]) -> None:
        self.reconstructions = list(reconstructions)

    @cached_property
    def extent(self) -> float:
        """Of the first reconstruction."""
        return self.reconstructions[0].extent[1]

    @cached_property
    def obstacles(self) -> list[str | None]:
        """For each reconstruction, why it cannot be compared with the first; None if it can."""
        first, *others = [(r.scene, r.cloud) for r in self.reconstructions]
        return [None, *(why_not_comparable(first, other) for other in others)]

    @cached_property
    def _differences(self) -> dict[bool, list[Difference | None]]:
        first, *others = [(r.scene, r.cloud) for r in self.reconstructions]
        obstacles = self.obstacles[1:]
        return {
            same: [
                None,
                *(
                    difference_of(first, other, same_scale=same) if obstacle is None else None
                    for other, obstacle in zip(others, obstacles, strict=True)
                ),
            ]
            for same in (False, True)
        }

    def differences(self, settings: Settings) -> list[Difference | None]:
        """Difference of each reconstruction from the first; None for the first and where it cannot be compared."""
        return self._differences[settings.same_scale]

    def placed(self, index: int, settings: Settings) -> tuple[float, NDArray[np.float64]]:
        """Scale and transform of a reconstruction on the stage."""
        difference = self.differences(settings)[index]
        scale = difference.scale if settings.same_scale and difference is not None else 1.0
        place = np.zeros(3)
        if settings.layout == "side by side":
            place[0] = index * GAP * self.extent
        return scale, place

    def shown(self, index: int, settings: Settings) -> tuple[Shown, str]:
        """Points of a reconstruction, and the meaning of their colours."""
        cloud = self.reconstructions[index].cloud
        chosen = cloud.chosen(settings.percentile, settings.most_points)
        colors, meaning = self._colors(index, settings)
        return Shown(cloud.points[chosen], colors[chosen], *self.placed(index, settings)), meaning

    def _colors(self, index: int, settings: Settings) -> tuple[Colors, str]:
        cloud = self.reconstructions[index].cloud
        if settings.color == "reconstruction":
            tint = np.array(TINTS[index % len(TINTS)], dtype=np.uint8)
            return np.broadcast_to(tint, cloud.colors.shape), f"rgb{tuple(int(c) for c in tint)}"
        if settings.color == "confidence":
            if cloud.confidence is None:
                return np.full_like(cloud.colors, UNKNOWN), "no confidence was saved"
            colors, (low, high) = confidence_colors(cloud.confidence)
            return colors, f"confidence from {low:.3g} (dark) to {high:.3g} (bright), logarithmic"
        if settings.color == "difference":
            return self._difference_colors(index, settings)
        return cloud.colors, "the images' own colours"

    def _difference_colors(self, index: int, settings: Settings) -> tuple[Colors, str]:
        """The first reconstruction shows its difference from the second, so corresponding pixels have the same
        colour.
        """
        differences = self.differences(settings)
        source = index or next((i for i, found in enumerate(differences) if found is not None), 0)
        found, cloud = differences[source], self.reconstructions[index].cloud
        if found is None:
            reason = self.obstacles[index] or "there is no other reconstruction of the same images"
            return np.full_like(cloud.colors, UNKNOWN), f"no difference: {reason}"
        colors, largest = difference_colors(found.points)
        whom = self.reconstructions[0 if index else source].label
        return colors, f"distance from {whom}, from 0 (dark) to {largest:.2%} (bright) of the distance from camera 0"
