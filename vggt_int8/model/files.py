"""Weight files without a config beside them, on disk or in a Hub repository, as research code publishes them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from vggt_int8.model.keywords import HUB_KEYWORDS
from vggt_int8.saves.errors import CheckpointError
from vggt_int8.saves.names import check_source
from vggt_int8.saves.plain_files import SINGLE_FILES, check_plain_file


def is_weight_file(source: str) -> bool:
    """Whether a source is a file on disk, judged by its name or by what exists there."""
    return source.endswith(SINGLE_FILES) or os.path.isfile(source)


def weight_file(source: str, filename: str | None, keywords: Mapping[str, Any]) -> str:
    """Path of a weight file: `source` itself, or `filename` in a folder or Hub repository of that name.

    Raises `CheckpointError` if there is none, TypeError for a keyword that would select another.
    """
    for name in ("variant", *(("subfolder",) if filename is None else ())):
        if keywords.get(name):
            raise TypeError(f"{name}={keywords[name]!r:.60} chooses among files, but one is named")
    if filename is None:
        path = Path(source)
    elif Path(source).is_dir():
        path = Path(source) / (keywords.get("subfolder") or "") / filename
    else:
        if is_weight_file(source):
            raise CheckpointError(f"{source!r} is a file: leave out filename={filename!r:.60}")
        check_source(source, keywords, filename)
        hub = {name: keywords[name] for name in HUB_KEYWORDS if name in keywords}
        try:
            path = Path(str(cached_file(source, filename, **hub)))
        except OSError as error:
            raise CheckpointError(f"cannot get {filename!r} of {source!r}: {' '.join(str(error).split())}") from error
    check_plain_file(path)
    if not str(path).endswith(SINGLE_FILES):
        raise CheckpointError(f"{path} is a file of unknown kind; known are {', '.join(SINGLE_FILES)}")
    return str(path)
