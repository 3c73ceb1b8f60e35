"""What a type checker knows of the calls that users write."""

import ast
import inspect
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import get_type_hints

import pytest
from torch import nn

from vggt_int8 import VGGT, VGGTInt8, VGGTOmega, VGGTOmegaInt8, quantize

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


@pytest.mark.parametrize("network", [VGGT, VGGTInt8, VGGTOmega, VGGTOmegaInt8])
def test_a_call_is_declared_as_what_it_runs(network: type[nn.Module]) -> None:
    """For type checkers, to whom `nn.Module`'s own call returns anything."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(network))).body
    declared = {node.name: node for node in ast.walk(definition) if isinstance(node, ast.FunctionDef)}
    call, forward = declared["__call__"], declared["forward"]
    assert ast.dump(call.args) == ast.dump(forward.args)
    assert call.returns is not None
    assert ast.dump(call.returns) == ast.dump(forward.returns)
    assert get_type_hints(network.forward)["return"] is network.output_class


def test_what_quantize_returns_is_declared_as_what_it_was_given() -> None:
    hints = get_type_hints(quantize)
    assert hints["return"] is hints["model"]


@pytest.mark.slow
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
