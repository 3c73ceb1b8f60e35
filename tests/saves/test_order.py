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


@pytest.mark.slow
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


@pytest.mark.slow
def test_contents_are_on_the_disk_before_they_are_renamed(
    int8_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a save's every file, so that no loss of power leaves a name without its content."""
    synced: set[str] = set()
    folder, at_first_rename = tmp_path / "save", []
    fsync, rename = os.fsync, os.rename

    def watched_fsync(descriptor: int) -> None:
        synced.add(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def watched_rename(source: Path, target: Path) -> None:
        if Path(target) == folder or Path(target).parent == folder:
            at_first_rename.append(set(synced))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "rename", watched_rename)
    for _ in range(2):  # a new folder, and one that holds a save
        synced.clear()
        at_first_rename.clear()
        save_model(folder, int8_checkpoint)
        assert {path.name for path in folder.iterdir()} <= at_first_rename[0]
