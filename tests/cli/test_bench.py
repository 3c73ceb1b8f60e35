"""`vggt-int8 bench` and `bench-report` from end to end on a tiny network, and their errors."""

import dataclasses
import json
from functools import cache
from pathlib import Path

import pytest

from vggt_int8.bench import cost, sweep, variants
from vggt_int8.bench.records import read_rows
from vggt_int8.cli import bench
from vggt_int8.model.config import VGGTConfig

CONFIG = Path(__file__).parent.parent / "data" / "parity" / "tiny_vggt_config.json"
TINY = (f"random:{CONFIG}", "--device", "cpu", "--size", "42x56", "--seconds", "0")


@pytest.fixture(autouse=True)
def quick_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "SECONDS", 0.01)
    monkeypatch.setattr(cost, "LOADS", {"cpu": (256, 256, 1 << 24)})


@cache
def counted(config: str, size: tuple[int, int]) -> cost.WorkCounter:
    return cost.WorkCounter(VGGTConfig(**json.loads(config)), size)


@pytest.fixture(autouse=True)
def work_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is the same in all tests here, and counting takes as long as measuring it."""
    monkeypatch.setattr(sweep, "WorkCounter", lambda config, size: counted(config.to_json_string(), size))


@pytest.mark.slow
def test_rows_are_appended_resumed_and_reported(cli, tmp_path: Path) -> None:
    out, readme = tmp_path / "results" / "cpu.jsonl", tmp_path / "README.md"
    command = ("bench", *TINY, "-o", out, "--variants", "fp32,int8_dynamic:native")
    text = cli(*command, "--frames", "1")
    assert "ceilings here" in text
    assert [line.split()[:2] for line in text.splitlines() if line.startswith(("fp32 ", "int8_dyn"))] == [
        ["fp32", "1"],
        ["int8_dynamic:native", "1"],
    ]
    assert len(read_rows([out])) == 2
    cli("bench", *TINY, "-o", out, "--frames", "2", "--variants", "bf16-compiled-graph")  # fails on a CPU
    cli(*command[:-1], command[-1] + ",bf16-compiled-graph", "--frames", "1,2", "--resume")
    measured = [(row["variant"], row["frames"], row["status"]) for row in read_rows([out])]
    assert measured == [
        ("fp32", 1, "ok"),
        ("int8_dynamic:native", 1, "ok"),
        ("bf16-compiled-graph", 2, "failed"),
        ("fp32", 2, "ok"),
        ("int8_dynamic:native", 2, "ok"),
        ("bf16-compiled-graph", 1, "failed"),
        ("bf16-compiled-graph", 2, "failed"),
    ]
    assert "| int8_dynamic, native | " in cli("bench-report", out)
    readme.write_text("# A\n<!-- bench:begin -->\n<!-- bench:end -->\n")
    report = ("bench-report", out, "--readme", readme, "--plot", tmp_path / "figures" / "bench.svg")
    assert "updated" in cli(*report)
    assert "](figures/bench.svg)" in readme.read_text()
    assert "up to date" in cli(*report)
    rows = out.read_text()
    assert f"{out}: is there and was not drawn here" in cli("bench-report", out, "--plot", out, code=2)
    assert out.read_text() == rows


@pytest.mark.slow
def test_default_sweep_names_what_it_leaves_out(cli, tmp_path: Path) -> None:
    text = cli("bench", *TINY, "-o", tmp_path / "r.jsonl", "--frames", "12")
    assert "(name them in --variants to measure them): 12 frames: fp32\n" in text
    assert "bf16-autocast" in text


@pytest.mark.slow
def test_an_interrupted_sweep_keeps_its_rows(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    stop = dataclasses.replace(variants.BASELINES["bf16"], build=interrupted)
    monkeypatch.setitem(variants.BASELINES, "bf16", stop)
    out = tmp_path / "r.jsonl"
    assert "Interrupted." in cli("bench", *TINY, "-o", out, "--frames", "1", "--variants", "fp32,bf16,fp16", code=130)
    assert [row["variant"] for row in read_rows([out])] == ["fp32"]


def test_the_help_names_every_baseline() -> None:
    assert bench.BASELINES.split(", ") == list(variants.BASELINES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--frames", "1,zero"), "--frames is '1,zero': give whole numbers above 0"),
        (("--frames", "0"), "--frames is '0'"),
        (("--size", "42"), "--size is '42': give height x width"),
        (("--size", "40x56"), "--size is 40x56: both must be multiples of the model's patch size 14"),
        (("--variants", "fp23"), "there is no variant 'fp23'"),
        (("--memory-gb", "8"), "--memory-gb 8 limits a GPU"),
        (("--device", "tpu"), "no device 'tpu'"),
    ],
)
def test_wrong_arguments_are_named(cli, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in cli("bench", *TINY, "-o", tmp_path / "r.jsonl", *arguments, code=2)
    assert list(tmp_path.iterdir()) == []


def test_reports_of_nothing(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"{tmp_path}/absent.jsonl" in cli("bench-report", "~/absent.jsonl", code=2)
    (tmp_path / "empty.jsonl").touch()
    assert "no rows" in cli("bench-report", tmp_path / "empty.jsonl", code=2)
