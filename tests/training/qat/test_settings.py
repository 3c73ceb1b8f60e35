"""Defaults of quantization-aware training, and mistakes in its file."""

import dataclasses
from pathlib import Path

import pytest

from tests.training.qat.conftest import SMALL, load_qat
from vggt_int8.model import VGGTConfig
from vggt_int8.training.qat_config import default_config


def test_defaults_by_size(tmp_path: Path) -> None:
    small, large = default_config(VGGTConfig(**SMALL)), default_config(VGGTConfig())
    assert (small.trained, small.gradient_checkpointing, small.mixed_precision) == ("all", False, "no")
    assert (large.trained, large.gradient_checkpointing, large.mixed_precision) == ("norms", True, "bf16")
    assert (small.data.size, large.data.size) == ((16, 16), (518, 518))
    path = tmp_path / "qat.toml"
    path.write_text("[optimizer]\ntotal_steps = 7\n")
    read = load_qat(path, VGGTConfig(**SMALL))
    assert read == dataclasses.replace(small, optimizer=dataclasses.replace(small.optimizer, total_steps=7))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trained = 'most'", "trained must be one of all, norms, got 'most'"),
        ("scales = 'free'", "scales must be one of learned, fixed"),
        ("start = 'best'", "start must be one of gptq, nearest"),
        ("compile = ['blocks']", "compile can name render alone here, not blocks"),
        ("[data]\ntracks = 3", "data.tracks is 3, but tracks are not distilled"),
        ("[data]\nsize = [20, 16]", r"data.size \[20, 16\] must be multiples of the patch size 8"),
        ("[loss]\nposes = 1.0", "unknown keys 'poses'"),
        ("[loss]\npose = 0\ndepth = 0\npoints = 0\nconfidence = 0\nfeatures = 0", "there is nothing to learn"),
        ("[model]\ndepth = 3", "unknown keys 'model'"),
        ("[loss]\npose = -1.0", "loss.pose must be at least 0"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "qat.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"qat.toml: .*{words}"):
        load_qat(path, VGGTConfig(**SMALL))
