"""The embedded model: a small trained VGGT inside the package, which `from_pretrained` and every command know by name.

It needs no network, so it is the first thing to try, and the way on where a download does not come.
"""

import os
import warnings
from pathlib import Path

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent / "assets" / "mini"


def resolve_source(source: str | os.PathLike[str]) -> str:
    """The folder of the embedded model for its name; any other source as it is, with `~` expanded.

    Warns if there is a file or folder of that name here, too: that one is reached by "./embedded". Raises TypeError
    for what can be no name of a model.
    """
    if not isinstance(source, str | os.PathLike) or not os.fspath(source):
        raise TypeError(f"{source!r} names no model: pass a Hub id, a folder, a file of weights, or {EMBEDDED!r}")
    name = os.fspath(source)
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    if name != EMBEDDED or not isinstance(source, str):
        return os.path.expanduser(name)
    if os.path.lexists(EMBEDDED):
        warnings.warn(
            f"{EMBEDDED!r} is taken for the model inside the package; the folder of that name here is './{EMBEDDED}'",
            stacklevel=3,
        )
    return str(EMBEDDED_FOLDER)
