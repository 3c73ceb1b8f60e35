"""The file that makes a folder a save is the first to go and the last to come: until then there is none."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from vggt_int8 import VGGTInt8
from vggt_int8.training.checkpoint import save_checkpoint


def save_model(folder: Path, source: Path) -> None:
    VGGTInt8.from_pretrained(source).save_pretrained(folder, max_shard_size="300KB")


def save_training(folder: Path, _: Path) -> None:
    model = nn.Linear(2, 2)
    save_checkpoint(folder, model, [torch.optim.AdamW(model.parameters())], {"step": 1})


@pytest.mark.parametrize(
    ("save", "last", "least"), [(save_model, "config.json", 4), (save_training, "trainer.json", 2)]
)
def test_what_makes_it_a_save_goes_first_and_comes_last(
    save: Callable[[Path, Path], None],
    last: str,
    least: int,
    int8_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, gone, come = tmp_path / "save", [], []
    save(folder, int8_checkpoint)
    rename = os.rename

    def watched(source: Path, target: Path) -> None:
        if not Path(source).name.startswith(".") and not Path(target).name.startswith("."):
            for path, names in ((Path(source), gone), (Path(target), come)):
                if path.parent == folder:
                    names.append(path.name)
        rename(source, target)

    monkeypatch.setattr(os, "rename", watched)
    save(folder, int8_checkpoint)
    assert gone[0] == last
    assert come[-1] == last
    assert sorted(gone) == sorted(come) == sorted(path.name for path in folder.iterdir())
    assert len(come) >= least
