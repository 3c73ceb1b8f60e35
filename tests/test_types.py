"""What a type checker is told of the calls that users write. That it understands them is in `typed_calls.py`."""

import ast
import inspect
import textwrap
import tomllib
from pathlib import Path
from typing import get_type_hints

import pytest
from torch import nn

from vggt_int8 import VGGT, VGGTInt8, VGGTOmega, VGGTOmegaInt8, quantize

ROOT = Path(__file__).parent.parent


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


def test_mypy_reads_the_calls_that_users_write() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert settings["modules"] == ["tests.typed_calls"]
    assert settings["warn_unused_ignores"], "else a wrong call that is accepted is not reported"
