"""Calibration: from images to the ranges that static scales cover.

    images     which images are looked at, and in which order, whatever order they came in
    watch      runs the network on them and shows every layer's input, rotated if the layer's is, to its observers
    observers  what is remembered of the values, and which range follows: the whole, or with the rarest cut off
    rounding   codes of weights that are rounded by their inputs
    scales     a plan and images -> static scales, and what a checkpoint says of them
    smoothing  a plan and images -> what is folded into the layers before

Nothing of an input is kept beyond the call of its layer but counts, and some rows where smoothing is searched, so the
memory needed is that of the floating-point network and of one call of at most `images.FRAMES` frames.
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
