"""Weights that somebody else's tool wrote, with a checkpoint's config beside them."""

import json
from pathlib import Path


def copy_config(source: Path, folder: Path) -> None:
    """`source/config.json` into `folder`, without what it says of the files that it was saved with."""
    config = json.loads((source / "config.json").read_text())
    del config["save"]
    (folder / "config.json").write_text(json.dumps(config))
