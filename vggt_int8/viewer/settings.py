"""What a person can choose in the viewer, apart from how it is drawn."""

from dataclasses import dataclass

COLORS = ("image", "confidence", "difference", "reconstruction")
LAYOUTS = ("overlaid", "side by side")
# Of whole reconstructions, so that two that lie on each other can be told apart: orange, blue, green, purple, …
TINTS = ((230, 126, 34), (41, 128, 185), (39, 174, 96), (142, 68, 173), (192, 57, 43), (22, 160, 133))


@dataclass(frozen=True)
class Settings:
    """Everything that decides which points are sent, where they lie and what colours they have."""

    color: str = "image"  # one of COLORS
    percentile: float = 25.0  # of confidence, 0 to 100: less confident points are left out
    most_points: int = 1_000_000  # of each reconstruction
    layout: str = "overlaid"  # one of LAYOUTS
    same_scale: bool = False  # multiply lengths of all but the first to fit the first
    shown: tuple[bool, ...] = ()  # for each reconstruction
