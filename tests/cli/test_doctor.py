"""`vggt-int8 doctor` on this machine, and on one with faults."""

import json
from dataclasses import replace

import pytest
import torch

from vggt_int8 import doctor
from vggt_int8.doctor import Gpu, Trial, try_it


@pytest.mark.slow
def test_this_machine_can_run_int8(cli) -> None:
    found = json.loads(cli("doctor", "--json"))
    assert found["trial"]["mode"].startswith("fused")
    assert max(found["trial"]["errors"].values()) < 0.05
    assert len(found["trial"]["attention_kernels"]) == 1
    assert set(found["trial"]["kernels"]) >= {"encoder", "frame blocks", "global blocks", "camera head", "depth head"}
    assert found["facts"]["chosen"]["dynamic"] == "native"
    assert [finding for finding in found["findings"] if finding["level"] == "error"] == []


def test_a_fault_is_told_and_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = replace(doctor.look(), driver="470.1", gpus=[], cuda=None)
    monkeypatch.setattr(doctor, "look", lambda: facts)
    monkeypatch.setattr(doctor, "try_it", lambda device: pytest.fail("it was to be left out"))
    found = json.loads(cli_output("doctor", "--skip-run", "--json"))
    assert found["findings"][0]["level"] == "error"
    assert "driver 470.1" in found["findings"][0]["what"]
    assert found["trial"] is None


def test_a_gpu_is_told_how_many_frames_fit(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = replace(doctor.look(), gpus=[Gpu("RTX 3060", 86, 12 << 30, 11 << 30, True)], hip=None, driver="580")
    monkeypatch.setattr(doctor, "look", lambda: facts)
    monkeypatch.setattr(
        doctor, "try_it", lambda device: Trial("int8_rotated", "cuda", mode="fused", errors={"depth": 0})
    )
    monkeypatch.setattr("vggt_int8.cli.doctor.SIZES", ((392, 518),))
    monkeypatch.setattr("vggt_int8.cli.doctor.RECIPES", ("int8_rotated",))
    lines = [line.split() for line in cli("doctor").splitlines() if line.startswith("RTX 3060")]
    assert len(lines) == 1
    assert all(int(line[-1].replace(",", "")) > int(line[-2].replace(",", "")) > 0 for line in lines)


def test_secrets_of_the_environment_are_not_shown(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_HOME", "/elsewhere")
    shown = cli("doctor", "--skip-run")
    assert "hf_secret" not in shown
    assert "HF_TOKEN=set" in shown
    assert "HF_HOME=/elsewhere" in shown


def test_a_trial_that_raises_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setattr("vggt_int8.doctor.trial.load_scene", fail)
    assert try_it(torch.device("cpu")).error == "RuntimeError: no kernel image is available"


def cli_output(*arguments: str) -> str:
    """stdout of a command that ends with 1."""
    from typer.testing import CliRunner

    from vggt_int8.cli import app

    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 1, result.output
    return result.stdout
