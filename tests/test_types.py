"""What a type checker knows of the calls that users write."""

import subprocess
import sys
from pathlib import Path

USE = """
from typing import assert_type

from torch import Tensor, nn

from vggt_int8 import VGGT, VGGTInt8, VGGTOutput, quantize
from vggt_int8.runtime import Runtime


def use(model: VGGTInt8, plain: VGGT, images: Tensor) -> None:
    assert_type(model(images), VGGTOutput)
    assert_type(model(images, query_points=images, heads=("depth",), check_finite=False), VGGTOutput)
    assert_type(plain(images, frames_chunk_size=None), VGGTOutput)
    assert_type(Runtime(model)(images), VGGTOutput)
    assert_type(model(images).depth, Tensor | None)
    assert_type(quantize(plain), VGGT)
    assert_type(quantize(nn.Sequential()), nn.Sequential)
    plain(images, check_finite=False)  # WRONG
    model("images")  # WRONG
"""


def test_calls_are_typed(tmp_path: Path) -> None:
    file = tmp_path / "use.py"
    file.write_text(USE, encoding="utf-8")
    root = Path(__file__).parent.parent  # whose cache holds PyTorch's types, if the package was checked before
    result = subprocess.run(
        [sys.executable, "-m", "mypy", str(file)], cwd=root, capture_output=True, text=True, check=False
    )
    wrong = [number for number, line in enumerate(USE.splitlines(), start=1) if line.endswith("# WRONG")]
    found = [line for line in result.stdout.splitlines() if "error:" in line]
    assert [int(line.split(":")[1]) for line in found] == wrong, result.stdout + result.stderr
    assert 'Unexpected keyword argument "check_finite"' in found[0]
    assert 'incompatible type "str"; expected "Tensor"' in found[1]
