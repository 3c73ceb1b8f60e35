"""VGGT in INT8: load, quantize, run and save; see the README.

Importing the package registers VGGT with transformers' Auto classes; it needs no network and no GPU, and writes
nothing. It is cheap: the public names, and with them PyTorch and transformers, are loaded when they are first used,
the registration takes place when transformers is (`auto_classes.py`), and the libraries behind the backends are
imported when a backend is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from vggt_int8.auto_classes import register_when_loaded
from vggt_int8.quiet import quiet_import

if TYPE_CHECKING:
    from vggt_int8.eval.compare import compare_model_outputs
    from vggt_int8.images import load_images
    from vggt_int8.model.config import VGGTConfig
    from vggt_int8.model.omega.config import VGGTOmegaConfig
    from vggt_int8.model.omega.network import VGGTOmega, VGGTOmegaOutput
    from vggt_int8.model.vggt import VGGT, VGGTOutput
    from vggt_int8.pretrained import CheckpointError, VGGTInt8, VGGTOmegaInt8, quantize
    from vggt_int8.quant import BackendError, estimate_model_size
    from vggt_int8.recipe import Recipe, RecipeError, available_recipes, load_recipe

__version__ = "0.1.0"

_HOMES = {
    "VGGT": "vggt_int8.model.vggt",
    "BackendError": "vggt_int8.quant",
    "CheckpointError": "vggt_int8.pretrained",
    "Recipe": "vggt_int8.recipe",
    "RecipeError": "vggt_int8.recipe",
    "VGGTConfig": "vggt_int8.model.config",
    "VGGTInt8": "vggt_int8.pretrained",
    "VGGTOmega": "vggt_int8.model.omega.network",
    "VGGTOmegaConfig": "vggt_int8.model.omega.config",
    "VGGTOmegaInt8": "vggt_int8.pretrained",
    "VGGTOmegaOutput": "vggt_int8.model.omega.network",
    "VGGTOutput": "vggt_int8.model.vggt",
    "available_recipes": "vggt_int8.recipe",
    "compare_model_outputs": "vggt_int8.eval.compare",
    "estimate_model_size": "vggt_int8.quant",
    "load_images": "vggt_int8.images",
    "load_recipe": "vggt_int8.recipe",
    "quantize": "vggt_int8.pretrained",
}

__all__ = [
    "VGGT",
    "BackendError",
    "CheckpointError",
    "Recipe",
    "RecipeError",
    "VGGTConfig",
    "VGGTInt8",
    "VGGTOmega",
    "VGGTOmegaConfig",
    "VGGTOmegaInt8",
    "VGGTOmegaOutput",
    "VGGTOutput",
    "available_recipes",
    "compare_model_outputs",
    "estimate_model_size",
    "load_images",
    "load_recipe",
    "quantize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with quiet_import():
        value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_when_loaded()
