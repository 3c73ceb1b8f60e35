"""The model with each of the selectable recipes, loaded on first use. The last two are kept in memory."""

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from vggt_int8.embedded import resolve_source
from vggt_int8.pretrained.int8_network import Int8Network
from vggt_int8.pretrained.model import int8_class_of
from vggt_int8.pretrained.source import load_config, stored_quantization
from vggt_int8.recipe import available_recipes, load_recipe

FLOAT = "fp32"  # the model as its floating-point checkpoint has it
KEPT = 2  # loaded at a time: both sides of a comparison


class Models:
    """One checkpoint (folder, file or Hub id) with several recipes.

    Raises `CheckpointError` for a model that is neither VGGT nor VGGT-Omega.
    """

    def __init__(self, model: str, **options: Any) -> None:
        """options: `backend`, `device_map` and `dtype` of `from_pretrained`."""
        self.model, self._options = model, options
        self._stored = _stored_recipe(resolve_source(model))
        self._loaded: OrderedDict[str, Int8Network] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The displayed name: for a folder or file, without its path on this machine."""
        path = Path(self.model).expanduser()
        return path.resolve().name if path.exists() else self.model

    @property
    def choices(self) -> list[str]:
        """The recipes to choose from: the one of the checkpoint, or all that need no calibration images."""
        if self._stored is not None:
            return [self._stored]
        return [FLOAT, *(name for name in available_recipes() if not load_recipe(name).needs_calibration)]

    def get(self, recipe: str) -> Int8Network:
        """The network with a recipe, in evaluation mode. Raises ValueError for a recipe that is not a choice."""
        if recipe not in self.choices:
            raise ValueError(f"recipe is {recipe!r}; choose one of {', '.join(self.choices)}")
        with self._lock:
            if recipe not in self._loaded:
                while len(self._loaded) >= KEPT:
                    self._loaded.popitem(last=False)  # before another takes its memory
                wanted = None if recipe in (FLOAT, self._stored) else recipe
                kind = int8_class_of(self.model)
                self._loaded[recipe] = kind.from_pretrained(self.model, recipe=wanted, **self._options).eval()
            self._loaded.move_to_end(recipe)
            return self._loaded[recipe]

    def bytes_beside(self, recipe: str, device: str) -> int:
        """Weight memory of the other loaded models on devices of this type."""
        others = (network for name, network in self._loaded.items() if name != recipe)
        tensors = (tensor for network in others for tensor in network.state_dict().values())
        return sum(tensor.nbytes for tensor in tensors if tensor.device.type == device)


def _stored_recipe(source: str) -> str | None:
    """Recipe of a quantized folder, Hub id, or file with a config.json next to it; None for a floating-point model."""
    path = Path(source)
    if path.is_file():
        if not (path.parent / "config.json").is_file():
            return None
        source = str(path.parent)
    stored = stored_quantization(load_config(source, {}), source)
    return None if stored is None else stored.parsed().name
