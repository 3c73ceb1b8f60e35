"""From a plan and images to the factors that smoothing folds into a model: observes linears' inputs, then finds
strengths.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from vggt_int8.calibration.observers import Observer
from vggt_int8.calibration.scales import caller
from vggt_int8.calibration.watch import observe
from vggt_int8.quant.plan import LayerPlan
from vggt_int8.quant.seams import find_seams
from vggt_int8.quant.smoothing import Folds, parameters_of
from vggt_int8.quant.strengths import InputSample, calibrated_folds
from vggt_int8.recipe import Recipe, Scheme


class Sampled(Observer):
    """Keeps an `InputSample` of what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.sample = InputSample()

    def _see(self, x: Tensor) -> None:
        self.sample.add(x)

    def range(self) -> float:
        return self.absmax


@torch.no_grad()
def smoothing_folds(
    model: nn.Module,
    plan: Mapping[str, LayerPlan],
    recipe: Recipe,
    inputs: Sequence[Tensor],
    on_call: Callable[[int, int], None] | None = None,
) -> tuple[Folds, dict[str, float]]:
    """The folds of a recipe whose `smoothing` is a strength or "search"; the model is not changed.

    inputs: from `inputs_for`.

    Returns the folds, and the strength for each linear after a seam, by name, 0 for none. Needs 2 kB per input channel
    of such a linear beside the network (VGGT-1B: 0.5 GB). Raises `CalibrationError`, and `RecipeError` as `find_seams`
    does.
    """
    seams = find_seams(model, plan, recipe.name)
    watched = {seam.reader: Scheme() for seam in seams}  # neither rotated nor parted into kinds of tokens
    found = observe(model, inputs, watched, lambda name: Sampled, run=caller(model, watched), on_call=on_call)
    samples = {}
    for name, (observer,) in found.items():
        assert isinstance(observer, Sampled)
        samples[name] = observer.sample
    schemes = {}
    for seam in seams:
        scheme = plan[seam.reader].scheme
        assert isinstance(scheme, Scheme)
        schemes[seam] = scheme
    return calibrated_folds(schemes, samples, recipe.smoothing, parameters_of(model))
