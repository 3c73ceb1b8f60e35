"""The embedded models: small trained networks in the package that `from_pretrained` and every command know by name.

They need no network, so they are the first thing to try, and the way on where a download does not come.
"""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

EMBEDDED = "embedded"
_ASSETS = Path(__file__).parent / "assets"
EMBEDDED_MODELS: Mapping[str, Path] = MappingProxyType({EMBEDDED: _ASSETS / "mini"})  # name -> folder
EMBEDDED_FOLDER = EMBEDDED_MODELS[EMBEDDED]
EMBEDDED_NAMES = " or ".join(EMBEDDED_MODELS)  # in words, for help


def resolve_source(source: str | os.PathLike[str]) -> str:
    """The folder of an embedded model for its name; any other source as it is, with `~` expanded.

    Warns if there is a file or folder of that name here, too: that one is reached by "./" before it. Raises TypeError
    for what can be no name of a model.
    """
    if not isinstance(source, str | os.PathLike) or not os.fspath(source):
        raise TypeError(f"{source!r} names no model: pass a Hub id, a folder, a file of weights, or {EMBEDDED!r}")
    name = os.fspath(source)
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    if name not in EMBEDDED_MODELS or not isinstance(source, str):
        return os.path.expanduser(name)
    if os.path.lexists(name):
        warnings.warn(
            f"{name!r} is taken for the model inside the package; the folder of that name here is './{name}'",
            stacklevel=3,
        )
    return str(EMBEDDED_MODELS[name])


def embedded_name(folder: str) -> str | None:
    """The name of the embedded model that `resolve_source` finds in a folder; None for any other folder."""
    return next((name for name, path in EMBEDDED_MODELS.items() if str(path) == folder), None)
