"""`embedded` names the model inside the package in every command that takes one; nothing is asked of the network."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_network(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network is asked")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_quantize_inspect_and_compare(cli, photos: list[Path]) -> None:
    cli("quantize", "embedded", "-o", "int8")
    assert json.loads(Path("int8/config.json").read_text())["quantization_config"]["recipe"]["name"] == "int8_dynamic"
    assert "embedded: not quantized" in cli("inspect", "embedded", "--brief")
    assert "Difference of int8 from embedded" in cli("compare", "embedded", "int8", *photos)


def test_run_names_it_in_the_report(cli, photos: list[Path]) -> None:
    cli("run", "embedded", *photos, "-o", "scene")
    assert json.loads(Path("scene/report.json").read_text())["model"] == "embedded"


def test_the_embedded_omega_runs(cli, photos: list[Path]) -> None:
    assert "embedded-omega: not quantized" in cli("inspect", "embedded-omega", "--brief")
    cli("run", "embedded-omega", *photos, "-o", "scene", "--recipe", "int8_dynamic")
    report = json.loads(Path("scene/report.json").read_text())
    assert report["model"] == "embedded-omega"


def test_a_folder_of_that_name_is_told_apart(cli, tiny: Path) -> None:
    Path("embedded").symlink_to(tiny)
    assert "frame_blocks.*.norm1 x 6" in cli("inspect", "embedded")
    assert "frame_blocks.*.norm1 x 2" in cli("inspect", "./embedded")


@pytest.mark.parametrize("command", ["run", "quantize", "compare", "inspect", "eval", "sensitivity", "qat"])
def test_a_model_that_is_not_there_is_not_asked_of_the_hub(cli, photos: list[Path], command: str) -> None:
    arguments = {
        "run": ["./none", *photos, "-o", "scene"],
        "quantize": ["./none", "-o", "int8"],
        "compare": ["./none", "embedded", *photos],
        "inspect": ["./none"],
        "eval": ["./none", "-o", "scores"],
        "sensitivity": ["./none", "synthetic", "-o", "ranking"],
        "qat": ["./none", "synthetic", "-o", "trained"],
    }[command]
    error = cli(command, *arguments, code=2)
    assert "there is no folder './none'" in error
    assert "'embedded' names the small model" in error
    assert not list(Path().iterdir())
