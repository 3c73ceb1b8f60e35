"""The embedded models: small trained networks in the package that `from_pretrained` and every command accept by name.

They work offline, so they are a starting point, and an alternative if a download fails.
"""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

EMBEDDED = "embedded"  # a VGGT
EMBEDDED_OMEGA = "embedded-omega"  # a VGGT-Omega
_ASSETS = Path(__file__).parent / "assets"
EMBEDDED_MODELS: Mapping[str, Path] = MappingProxyType(  # name -> folder
    {EMBEDDED: _ASSETS / "mini", EMBEDDED_OMEGA: _ASSETS / "mini_omega"}
)
EMBEDDED_FOLDER = EMBEDDED_MODELS[EMBEDDED]
EMBEDDED_NAMES = " or ".join(EMBEDDED_MODELS)  # in words, for help


def resolve_source(source: str | os.PathLike[str]) -> str:
    """The folder of an embedded model for its name; other sources are returned unchanged, with `~` expanded.

    Warns if a local file or folder has that name, too, which needs "./" in front. Raises TypeError for a value that
    cannot be a model name.
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
