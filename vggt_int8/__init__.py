"""VGGT in INT8: load, quantize, run and save; see the README.

Importing the package registers the "vggt_int8" quantizer and the Auto classes with transformers; it needs no network
and no GPU, and writes nothing. The libraries behind the backends are imported when a backend is used.
"""

from vggt_int8.eval.compare import compare_model_outputs
from vggt_int8.images import load_images
from vggt_int8.model import VGGT, VGGTConfig, VGGTOutput
from vggt_int8.pretrained import CheckpointError, VGGTInt8, quantize
from vggt_int8.quant import BackendError, estimate_model_size
from vggt_int8.recipe import Recipe, RecipeError, available_recipes, load_recipe

__version__ = "0.1.0"

__all__ = [
    "VGGT",
    "BackendError",
    "CheckpointError",
    "Recipe",
    "RecipeError",
    "VGGTConfig",
    "VGGTInt8",
    "VGGTOutput",
    "available_recipes",
    "compare_model_outputs",
    "estimate_model_size",
    "load_images",
    "load_recipe",
    "quantize",
]
