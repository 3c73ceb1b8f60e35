"""Quantization-aware training that is killed at its renames, removals and new folders, as `kill_cases.py` has it.

`test_kills.py` runs this file in a process of its own, which computes with one thread alone: its forks train.
"""

import itertools
import shutil
from pathlib import Path

import pytest
import torch

from tests.cli.kill_cases import hidden, killed
from vggt_int8 import VGGTInt8

CONFIG = """
[data]
views = [2]
frames_per_step = 2
supersample = 1
workers = 0
[validation]
scenes = 1
views = [2]
"""
NEVER = 10**6


@pytest.mark.exhaustive
def test_a_run_goes_on_from_what_it_has(tiny: Path, photos: list[Path], tmp_path: Path) -> None:
    """A step and a validation: a log and two checkpoints, then the model, which is whole or not there."""
    torch.set_num_threads(1)
    out, data, config = tmp_path / "place" / "out", tmp_path / "photos", tmp_path / "qat.toml"
    data.mkdir()
    for photo in photos:
        shutil.copy(photo, data)
    config.write_text(CONFIG)
    command = ["qat", tiny, data, "-o", out, "-r", "int8_dynamic", "--config", config, "--total-steps", 1]
    out.parent.mkdir()
    assert not killed(NEVER, command, out.parent)
    whole = sorted(path.relative_to(out) for path in out.rglob("*"))
    assert Path("README.md") in whole
    for number in itertools.count(step=11):
        shutil.rmtree(out)
        came = killed(number, command, out.parent)
        if (out / "config.json").exists():
            assert VGGTInt8.from_pretrained(out).quantization_plan, number
        assert not killed(NEVER, command, out.parent)
        assert sorted(path.relative_to(out) for path in out.rglob("*")) == whole, number
        assert hidden(out.parent) == [], number
        if not came:
            break
