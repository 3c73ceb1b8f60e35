"""The viewer's settings, independent of how they are drawn."""

from dataclasses import dataclass

COLORS = ("image", "confidence", "difference", "reconstruction")
OF_SEVERAL = ("difference", "reconstruction")  # colours that say nothing of a single reconstruction
LAYOUTS = ("overlaid", "side by side")
HIGHEST_PERCENTILE = 99.5  # so that something is left
# Colours of whole reconstructions, to distinguish overlapping ones: orange, blue, green, purple, …
TINTS = ((230, 126, 34), (41, 128, 185), (39, 174, 96), (142, 68, 173), (192, 57, 43), (22, 160, 133))


@dataclass(frozen=True)
class Settings:
    """Everything that determines which points are shown, where, and in which colours."""

    color: str = "image"  # one of COLORS
    percentile: float = 25.0  # of confidence, 0 to 100: less confident points are left out
    most_points: int = 1_000_000  # of each reconstruction
    layout: str = "overlaid"  # one of LAYOUTS
    same_scale: bool = False  # multiply lengths of all but the first to fit the first
    shown: tuple[bool, ...] = ()  # for each reconstruction; the page begins with all of them

    def check(self, count: int) -> None:
        """Raise ValueError, naming the value and the choices, for settings that do not fit `count` reconstructions."""
        if self.color not in COLORS:
            raise ValueError(f"color is {self.color!r}; choose one of {', '.join(COLORS)}")
        if self.color in OF_SEVERAL and count == 1:
            rest = " or ".join(color for color in COLORS if color not in OF_SEVERAL)
            raise ValueError(
                f"color {self.color!r} needs several reconstructions, and there is one folder: add another, or choose "
                f"{rest}"
            )
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout is {self.layout!r}; choose one of {', '.join(LAYOUTS)}")
        if not 0 <= self.percentile <= HIGHEST_PERCENTILE:
            raise ValueError(f"percentile is {self.percentile}; it must be from 0 to {HIGHEST_PERCENTILE}")
        if self.most_points < 1:
            raise ValueError(f"most_points is {self.most_points}; it must be at least 1")
