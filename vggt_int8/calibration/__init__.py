"""Calibration: from images to the ranges that static scales cover.

    images     chooses images and their order, independently of the order in which they were given
    watch      runs the network on them and passes every layer's input, rotated if the layer is, to its observers
    observers  what is recorded of the values, and the range that follows
    rounding   codes of weights that are rounded by their inputs
    scales     a plan and images -> static scales, and the facts that a checkpoint stores
    smoothing  a plan and images -> factors that are folded into the preceding layers

Of a layer's inputs only statistics are kept, and some rows if smoothing is searched, so the memory needed is that of
the floating-point network and of one call with at most `images.FRAMES` frames.
"""

from vggt_int8.calibration.images import find_scenes
from vggt_int8.calibration.observers import CalibrationError, Observer
from vggt_int8.calibration.rounding import round_weights
from vggt_int8.calibration.scales import Calibration, calibrate, channel_folds, facts_problem, inputs_for, static_layers
from vggt_int8.calibration.smoothing import smoothing_folds
from vggt_int8.calibration.watch import observe

__all__ = [
    "Calibration",
    "CalibrationError",
    "Observer",
    "calibrate",
    "channel_folds",
    "facts_problem",
    "find_scenes",
    "inputs_for",
    "observe",
    "round_weights",
    "smoothing_folds",
    "static_layers",
]
