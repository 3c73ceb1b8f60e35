"""Weights that somebody else's tool wrote: a checkpoint's config beside them, and whether they came in."""

import json
from pathlib import Path

import torch


def copy_config(source: Path, folder: Path) -> None:
    """`source/config.json` into `folder`, without what it says of the files that it was saved with."""
    config = json.loads((source / "config.json").read_text())
    del config["save"]
    (folder / "config.json").write_text(json.dumps(config))


def assert_same_weights(a: torch.nn.Module, b: torch.nn.Module) -> None:
    want, got = a.state_dict(), b.state_dict()
    assert want.keys() == got.keys()
    assert all(torch.equal(tensor, got[name]) for name, tensor in want.items())
