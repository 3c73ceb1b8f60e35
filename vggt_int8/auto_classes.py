"""Registers the networks with transformers' `AutoConfig` and `AutoModel` without importing transformers.

Importing transformers takes seconds, since it imports PyTorch, and a command that only prints its help needs neither.
So the registration is deferred: it runs at once if transformers has already loaded the Auto classes, and otherwise
right after it does, through an import finder (as proposed by PEP 369). Either order works.

`AutoConfig` and `AutoModel` read config.json themselves before they know that it belongs to a VGGT. Errors in the file
or its name are therefore transformers' (RecursionError for deep nesting, OSError for invalid JSON), and only
`from_pretrained` of `VGGTInt8`, `VGGT` and `VGGTConfig` knows the name "embedded". Changing that would change how every
other model is loaded.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Action = Callable[[ModuleType], None]


def register_when_loaded() -> None:
    """Register the networks with the Auto classes, now or as soon as they are imported. Idempotent."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    for name, action in _ACTIONS.items():
        if name in sys.modules:
            action(sys.modules[name])


def _register_config(module: ModuleType) -> None:
    # exist_ok: a program may reload transformers' modules, and whoever imports this package wants its "vggt".
    from vggt_int8.model.configs import CONFIGS

    for config in CONFIGS.values():
        module.AutoConfig.register(config.model_type, config, exist_ok=True)


def _register_model(module: ModuleType) -> None:
    from vggt_int8.model.configs import CONFIGS, network_name

    for config in CONFIGS.values():
        model = f"vggt_int8.pretrained.{network_name(config)}Int8"
        module.AutoModel.register(config, _stand_in(config, model), exist_ok=True)


def _stand_in(config: type, model: str) -> type:
    """A placeholder for a model class until it is used: transformers' model classes import torchao, which prints and is
    slow.

    model: its dotted name. Importing `vggt_int8.pretrained` replaces the placeholders by the classes themselves.
    """

    def real_class() -> Any:
        from vggt_int8.quiet import quiet_import

        home, _, name = model.rpartition(".")
        with quiet_import():
            return getattr(importlib.import_module(home), name)

    class StandIn:
        config_class = config

        @classmethod
        def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
            return real_class().from_pretrained(*args, **kwargs)

        @classmethod
        def _from_config(cls, *args: Any, **kwargs: Any) -> Any:
            return real_class()._from_config(*args, **kwargs)

    return StandIn


_ACTIONS: dict[str, Action] = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_model,
}


class _Finder(MetaPathFinder):
    """Finds the modules of `_ACTIONS` through the other finders, and runs the action after the module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _ACTIONS:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Then(spec.loader, _ACTIONS[fullname])
                return spec
        return None


class _Then(Loader):
    """Loads a module with `loader`, which stays its official loader, and then runs the action."""

    def __init__(self, loader: Loader, action: Action) -> None:
        self.loader = loader
        self.action = action

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        self.action(module)
