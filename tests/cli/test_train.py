"""`vggt-int8 train` from end to end on the smallest run, and its errors."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.training.runs import entries
from vggt_int8.cli import app, options
from vggt_int8.model import VGGT
from vggt_int8.scenes import SPLITS
from vggt_int8.training.checkpoint import read_facts
from vggt_int8.training.sections import COMPILABLE

CONFIG = Path(__file__).parent.parent / "training" / "tiny.toml"
RUN = ("train", "run", "--config", CONFIG, "--out")


def test_the_names_written_out_are_those_of_training_and_scenes() -> None:
    assert options.COMPILABLE == COMPILABLE
    assert tuple(SPLITS) == options.SPLITS


@pytest.mark.slow
def test_a_run_starts_within_its_parts_from_given_weights(cli, tmp_path: Path) -> None:
    assert "stopped at step 4: all steps are done" in cli(*RUN, tmp_path / "first", "--total-steps", "4")
    found = json.loads(cli("train", "export", "--out", tmp_path / "first", "--to", tmp_path / "model", "--json"))
    assert (found["command"], found["to"]) == ("train export", str(tmp_path / "model"))
    VGGT.from_pretrained(tmp_path / "model")
    given = ("--init", tmp_path / "model", "--first-step")
    found = json.loads(cli(*RUN, tmp_path / "second", *given, "4", "--json"))
    assert (found["step"], found["total_steps"], found["reason"]) == (6, 6, "all steps are done")
    assert found["checkpoint"] == str(tmp_path / "second" / "checkpoint")
    assert [entry["step"] for entry in entries(tmp_path / "second", "train")] == [6]
    assert "--first-step 6 must lie in the run: 0 ... 5" in cli(*RUN, tmp_path / "third", *given, "6", code=2)
    assert "holds a run already" in cli(*RUN, tmp_path / "second", *given, "4", code=2)
    assert not (tmp_path / "third").exists()


@pytest.mark.slow
def test_a_run_of_two_parts_goes_on_in_the_part_where_it_stopped(cli, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [*map(str, RUN), str(tmp_path / "whole")])
    assert "stopped at step 6: all steps are done" in result.stdout
    for words in ("from step 0 to 4", "loss.camera was 5.0, is 50.0 from here on", "from step 4 to 6"):
        assert words in result.stderr
    whole = entries(tmp_path / "whole", "train")
    assert [entry["step"] for entry in whole] == [2, 4, 6]
    weights = [(entry["total"] - entry["depth"] - entry["point"]) / entry["camera"] for entry in whole]
    assert weights == pytest.approx([5, 5, 50], rel=1e-4)
    assert [entry["step"] for entry in entries(tmp_path / "whole", "validation")] == [4, 6]
    for total in (4, 5, 6):  # at the border, within the second part, to its end
        cli(*RUN, tmp_path / "pieces", "--total-steps", total)
    assert read_facts(tmp_path / "pieces" / "checkpoint")["step"] == 6
    assert "stopped at step 6" in cli(*RUN, tmp_path / "pieces")
    cli(*RUN, tmp_path / "short", "--max-minutes", "0.001")
    assert read_facts(tmp_path / "short" / "checkpoint")["step"] == 1, "and no later part"
    curves = tmp_path / "curves.svg"
    assert f"wrote {curves}" in cli("train", "plot", tmp_path / "whole" / "log.jsonl", "-o", curves)
    assert curves.read_text().startswith("<svg")


@pytest.mark.slow
def test_progress_goes_to_stderr_unless_quiet(tmp_path: Path) -> None:
    arguments = [*map(str, RUN), str(tmp_path / "run"), "--max-minutes", "0.001"]
    shown, quiet = (CliRunner().invoke(app, [*arguments, *more]) for more in ([], ["--quiet"]))
    assert "from step 0 to 4" in shown.stderr
    assert len(shown.stdout.splitlines()) == len(quiet.stdout.splitlines()) == 1
    assert quiet.stderr == ""


def test_the_command_line_runs(cli) -> None:
    assert "accelerate launch" in cli("train", "--help")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--config", CONFIG, "--compile", "bloks"), ["--compile", "did you mean 'blocks'", "render, blocks, heads"]),
        (("--config", CONFIG, "--max-minutes", "-1"), ["--max-minutes", "-1 is out of range"]),
        (("--config", CONFIG, "--total-steps", "0"), ["--total-steps", "0 is out of range"]),
        (("--config", CONFIG, "--first-step", "4"), ["--first-step is for weights", "--init"]),
        (("--config", "no-such.toml"), ["--config", "no-such.toml is not there"]),
    ],
)
def test_mistakes_are_named_before_anything_is_written(cli, tmp_path: Path, arguments: tuple, words: list[str]) -> None:
    error = cli("train", "run", "--out", tmp_path / "run", *arguments, code=2)
    assert all(word in error for word in words)
    assert list(tmp_path.iterdir()) == []


def test_a_log_of_something_else_is_not_added_to(cli, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("mine\n")
    assert "is no training's log: name another --out" in cli(*RUN, tmp_path, code=2)
    assert "holds no checkpoint" in cli("train", "export", "--out", tmp_path, "--to", tmp_path / "model", code=2)
    assert (tmp_path / "log.jsonl").read_text() == "mine\n"
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


@pytest.mark.slow
def test_a_measurement_is_a_document(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vggt_int8.training.measure.REPEATS", 1)
    monkeypatch.setattr("vggt_int8.training.measure.EAGER_STEPS", 0)
    measure = ("train", "measure", "--config", CONFIG, "--out", tmp_path, "--max-minutes", "0.001")
    found = json.loads(cli(*measure, "--json"))
    assert [row["views"] for row in found["rows"]] == [2, 4]
    assert all(row["forward_backward_ms"] > 0 for row in found["rows"])
    assert Path(found["log"]).is_file()
