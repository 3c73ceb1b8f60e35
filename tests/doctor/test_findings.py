"""Machines that are not at hand, judged by their facts."""

from dataclasses import replace
from pathlib import Path

import pytest

from vggt_int8.doctor import Facts, Finding, Gpu, Trial, findings
from vggt_int8.doctor.facts import c_compiler

GPU = Gpu("NVIDIA RTX 4090", 89, 24 << 30, 23 << 30, supported=True)
GOOD = Facts(
    system="Linux",
    versions={"torch": "2.11.0+cu130", "triton": "3.6.0", "torchao": "0.18.0", "bitsandbytes": "0.50.0"},
    cpu="Xeon",
    threads=8,
    ram_bytes=64 << 30,
    cpu_kernel="compiled kernels on AVX-512 VNNI",
    cpu_kernel_missing="",
    compiler="/usr/bin/gcc",
    python_headers=True,
    cuda="13.0",
    hip=None,
    cuda_error="",
    driver="580.65",
    gpus=[GPU],
    chosen={"dynamic": "native"},
    cache_free_bytes=10**11,
)
TRIAL = Trial("int8_rotated", "cuda", mode="fused, CUDA graph", errors={"depth": 0.004})
NO_GPU = replace(GOOD, gpus=[], driver=None, cuda=None)


def test_a_good_machine_has_none() -> None:
    assert findings(GOOD, TRIAL) == []
    assert findings(NO_GPU) == []


@pytest.mark.parametrize(
    ("facts", "level", "says"),
    [
        (replace(GOOD, gpus=[], cuda=None), "error", "a build without CUDA"),
        (replace(GOOD, gpus=[], cuda_error="driver too old"), "error", "under driver 580.65: driver too old"),
        (replace(GOOD, gpus=[replace(GPU, capability=75)]), "warning", "compute capability 7.5: our kernels need 8.0"),
        (replace(GOOD, gpus=[replace(GPU, supported=False)]), "error", "has no kernels"),
        (replace(GOOD, cuda=None, hip="6.4"), "warning", "ROCm 6.4"),
        (replace(GOOD, versions=GOOD.versions | {"triton": None}), "error", "Triton is missing"),
        (replace(GOOD, compiler=None), "error", "no C compiler"),
        (replace(GOOD, python_headers=False), "error", "Python.h"),
        (replace(GOOD, chosen={"static": "none: nothing"}), "error", "nothing here runs static layers"),
        (replace(GOOD, versions=GOOD.versions | {"torchao": None}), "hint", "torchao is not installed"),
        (replace(NO_GPU, cpu_kernel_missing="no gcc", compiler=None), "warning", "slower CPU functions: no gcc"),
        (replace(GOOD, cache="/small", cache_free_bytes=10**9), "hint", "/small has 1.0 GB free"),
        (replace(GOOD, offline=True), "hint", "HF_HUB_OFFLINE"),
    ],
)
def test_what_stands_in_the_way_is_said(facts: Facts, level: str, says: str) -> None:
    (found,) = findings(facts, TRIAL)
    assert (found.level, says in found.what) == (level, True), found
    assert found.remedy


@pytest.mark.parametrize(
    ("trial", "level", "says"),
    [
        (Trial("int8_rotated", "cuda", error="RuntimeError: no kernel image"), "error", "no kernel image"),
        (replace(TRIAL, errors={"depth": 0.4}), "error", "depth of the embedded model is off by 0.4"),
        (replace(TRIAL, errors={"depth": float("nan")}), "error", "off by nan"),
        (replace(TRIAL, mode="plain", reason="old GPU"), "warning", "old GPU"),
    ],
)
def test_a_trial_is_judged(trial: Trial, level: str, says: str) -> None:
    (found,) = findings(GOOD, trial)
    assert (found.level, says in found.what) == (level, True), found


def test_a_compiler_that_is_named_is_the_one_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own-gcc"
    own.touch(0o755)
    monkeypatch.setenv("CC", f"{own} -pipe")
    assert c_compiler() == str(own)
    monkeypatch.setenv("CC", str(tmp_path / "missing"))
    assert c_compiler() is None


def test_the_worst_comes_first() -> None:
    facts = replace(GOOD, offline=True, compiler=None, gpus=[replace(GPU, capability=75)])
    levels = [finding.level for finding in findings(facts)]
    assert levels == ["error", "warning", "hint"]
    assert isinstance(findings(facts)[0], Finding)
