"""The README's picture is what its script draws."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.slow
def test_the_reconstruction_is_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["reconstruction.py", "--out", str(tmp_path / "again.png")])
    runpy.run_path(str(DOCS / "reconstruction.py"), run_name="__main__")
    pictures = [Image.open(path).convert("RGB") for path in (DOCS / "reconstruction.png", tmp_path / "again.png")]
    assert pictures[0].size == pictures[1].size
    shown, again = (np.asarray(picture, dtype=np.float32) for picture in pictures)
    # A code on a border falls to either side on another CPU, and its point moves by less than its disc.
    assert np.abs(shown - again).mean() < 4
    assert np.abs(shown - 255).mean() > 40, "nearly white"
