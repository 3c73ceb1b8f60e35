"""A tiny checkpoint, two photographs, and a console wide enough that no table cell is cut."""

import functools
import json
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import Tensor
from typer import testing
from typer.testing import CliRunner

from vggt_int8.cli import app, console

DATA = Path(__file__).parent.parent / "data" / "parity"


# Else every call builds all commands with all their options anew, which takes longer than many of them run.
testing._get_command = functools.cache(testing._get_command)  # type: ignore[attr-defined]


class Cli:
    """`cli("run", ...)` runs the command in this process."""

    def __call__(self, *args: object, code: int = 0) -> str:
        """Returns stdout, or stderr if another exit code than 0 is expected."""
        result = CliRunner().invoke(app, [str(arg) for arg in args])
        assert result.exit_code == code, f"exit code {result.exit_code}\n{result.output}\n{result.exception!r}"
        return result.stdout if code == 0 else result.stderr


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setattr(console.out, "_width", 240)
    monkeypatch.setattr(console.err, "_width", 240)
    return Cli()


@pytest.fixture(scope="session")
def tiny(
    tmp_path_factory: pytest.TempPathFactory, bare_sizes: dict[str, object], tiny_weights: dict[str, Tensor]
) -> Path:
    """A floating-point checkpoint of a tiny network, as from the Hub: the bare one with the point head."""
    from vggt_int8 import VGGT, VGGTConfig
    from vggt_int8.model.unfilled import unfilled

    sizes = {**bare_sizes, "enable_point": True}
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**sizes, "model_type": "vggt"}))
    kept = {name: tiny_weights[name] for name in unfilled(VGGT, VGGTConfig(**sizes)).state_dict()}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def tiny_int8(tiny: Path) -> Path:
    """The same, quantized by int8_dynamic."""
    from vggt_int8 import VGGTInt8

    folder = tiny.parent / "tiny.w8a8"
    VGGTInt8.from_pretrained(tiny, recipe="int8_dynamic").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    return [DATA / "images" / "landscape.png", DATA / "images" / "landscape_b.png"]
