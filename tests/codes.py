"""How far apart two computations may be that round the same activations to INT8 codes.

A value that lies on the border of two codes goes to either by the last digit of a sum, whose order is the machine's. It
moves what follows by a step, and other codes with it. At worst every code is rounded anew: two roundings with errors of
the same size, independent of each other, are sqrt(2) times that error apart. So the error against the computation
without codes is the measure, not a number seen on one machine.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from torch import Tensor

from vggt_int8.difference import relative_error

# sqrt(2), and twice that for the scatter of a norm over few numbers: a pose has 9 a frame. The largest of four scenes
# and this factor leave less than one case in a million.
FACTOR = 3
Results = Mapping[str, Tensor]
Scene = TypeVar("Scene")


def apart_by_codes(
    exact: Callable[[Scene], Results], rounded: Callable[[Scene], Results], scenes: Iterable[Scene]
) -> dict[str, float]:
    """The largest relative difference, by name, to what `rounded` makes: `FACTOR` times what codes cost it against
    `exact`, which has none, in the worst of `scenes`.
    """
    lost: dict[str, float] = {}
    for scene in scenes:
        want, got = exact(scene), rounded(scene)
        lost = {name: max(relative_error(got[name], want[name]), lost.get(name, 0.0)) for name in want.keys()}  # noqa: SIM118
    return {name: FACTOR * error for name, error in lost.items()}
