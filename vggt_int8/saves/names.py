"""Checks model names before the Hub is asked: a missing path should not cost half a minute of retries."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from vggt_int8.saves.errors import CheckpointError
from vggt_int8.saves.hub import NO_NETWORK, check_hub
from vggt_int8.saves.plain_files import SINGLE_FILES, check_readable


def check_source(source: str, options: Mapping[str, Any], filename: str | None = None) -> None:
    """Raise `CheckpointError` for a name that neither exists nor could be a Hub id, and if the Hub is needed but
    unavailable.

    options, filename: as in `check_hub`. Paths cause no request.
    """
    if is_hub_id(source, options.get("subfolder")):
        check_hub(source, options, filename)


def is_hub_id(source: str, subfolder: str | None = None) -> bool:
    """Whether a model's name could be a Hub id, without any request; False for a file or folder.

    Raises `CheckpointError` for a name that is neither, and for a file or folder that cannot be read.
    """
    try:
        os.stat(source)
    except PermissionError as error:
        raise CheckpointError(f"cannot look at {source}: {error.strerror}") from error
    except (OSError, ValueError):  # not there, or no path at all
        pass
    else:
        check_readable(Path(source), subfolder)
        return False
    if os.path.islink(source):
        raise CheckpointError(f"{source} is a link to {os.readlink(source)}, which does not exist")
    if source.endswith((*SINGLE_FILES, ".json", ".gguf", ".onnx")):
        raise CheckpointError(f"there is no file {source!r}")
    if address := re.match(r"https?://[^/]+/([^/]+/[^/]+)", source):
        raise CheckpointError(f"{source!r} is an address; pass the model's name, {address[1]!r}")
    parts = re.split(r"[/\\]", source)
    is_path = source.startswith((".", "/", "~")) or "\\" in source or re.match(r"[A-Za-z]:", source)
    if is_path or len(parts) != 2 or not all(parts):
        raise CheckpointError(
            f"there is no folder {source!r}; pass an existing folder or a Hub id such as 'owner/name'. {NO_NETWORK}"
        )
    if Path(parts[0]).is_dir():
        raise CheckpointError(
            f"there is no folder {source!r}, though {parts[0]!r} is one; the Hub is not asked for it. If a model of "
            "the Hub is meant, work in another folder"
        )
    try:
        validate_repo_id(source)
    except HFValidationError as error:
        raise CheckpointError(f"{source!r} is no folder here and cannot be a Hub id: {error}") from error
    return True
