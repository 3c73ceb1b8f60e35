"""The log of a run is strict JSON, whatever happens; its curves."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from tests.training.runs import ONLY, entries
from vggt_int8.model import VGGT
from vggt_int8.training.config import TrainingConfig
from vggt_int8.training.log import check_run_folder, read_log
from vggt_int8.training.loop import RunLimits
from vggt_int8.training.measure import measure
from vggt_int8.training.plot import write_curves
from vggt_int8.training.run import export
from vggt_int8.training.trainer import Trainer


def test_half_a_line_in_a_log_is_named_and_stays_alone(tiny_config: TrainingConfig, tmp_path: Path) -> None:
    trainer = Trainer(tiny_config, tmp_path)
    trainer.log({"kind": "train", "step": 1, "total": 1.0})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    trainer.log({"kind": "train", "step": 2, "total": 0.5})
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3
    with pytest.raises(ValueError, match=r"log\.jsonl, line 2: .*killed"):
        write_curves([tmp_path / "log.jsonl"], tmp_path / "curves.svg")


@pytest.mark.slow
def test_export_and_curves(tiny_config: TrainingConfig, tmp_path: Path) -> None:
    trainer = Trainer(tiny_config, tmp_path / "run")
    trainer.train(RunLimits(max_steps=4))
    export(tmp_path / "run", tmp_path / "model")
    model = VGGT.from_pretrained(tmp_path / "model")
    reference = trainer.network.state_dict()
    assert all(torch.equal(value.half(), reference[name].half()) for name, value in model.state_dict().items())
    write_curves([tmp_path / "run" / "log.jsonl"], tmp_path / "curves.svg")
    svg = (tmp_path / "curves.svg").read_text()
    assert svg.startswith("<svg")
    assert "held-out pose AUC" in svg
    assert svg.count("<polyline") == 1 + 3 + 2 + 1 + 1


def test_what_no_training_wrote_is_neither_replaced_nor_added_to(tiny_config: TrainingConfig, tmp_path: Path) -> None:
    Trainer(tiny_config, tmp_path).train(dataclasses.replace(ONLY, max_steps=1))
    check_run_folder(tmp_path)
    trainer = Trainer(tiny_config, tmp_path)
    (tmp_path / "checkpoint" / "notes.txt").write_text("mine")
    trainer.save()
    assert (tmp_path / "checkpoint" / "notes.txt").read_text() == "mine"
    (tmp_path / "log.jsonl").write_text("mine\n")
    with pytest.raises(FileExistsError, match=r"is no training's log.*log\.jsonl"):
        check_run_folder(tmp_path)
    (tmp_path / "measure").mkdir()
    (tmp_path / "measure" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"measure holds thesis\.txt"):
        measure(tiny_config, tmp_path, 1.0)
    assert (tmp_path / "measure" / "thesis.txt").read_text() == "mine"


def test_a_number_that_is_none_is_null_and_left_out_of_the_curves(tiny_config: TrainingConfig, tmp_path: Path) -> None:
    """A median over nothing, an infinite ratio: scores of an untrained network may be no numbers."""
    trainer = Trainer(tiny_config, tmp_path)
    trainer.log({"kind": "train", "step": 1, "total": 1.0})
    for step, value in ((2, 50.0), (4, float("nan")), (6, float("inf")), (8, 70.0)):
        trainer.log({"kind": "validation", "step": step, "2 views": {"auc_30": value, "focal_ratio_105": value}})
    log = tmp_path / "log.jsonl"

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    for line in log.read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    assert [entry["2 views"]["auc_30"] for entry in entries(tmp_path, "validation")] == [50.0, None, None, 70.0]
    earlier = log.read_text().replace("null", "NaN")  # as earlier versions wrote
    log.write_text(earlier)
    assert [entry["2 views"]["auc_30"] for entry in entries(tmp_path, "validation")] == [50.0, None, None, 70.0]
    write_curves([log], tmp_path / "curves.svg")
    assert "nan" not in (tmp_path / "curves.svg").read_text().lower()


@pytest.mark.parametrize("line", ["[1]", '{"kind": "train"}', '{"step": 1}', '{"kind": "train", "step": "1"}'])
def test_what_is_no_entry_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "log.jsonl").write_text(f"\n{line}\n")
    with pytest.raises(ValueError, match=r"log\.jsonl, line 2, is no entry"):
        read_log(tmp_path / "log.jsonl")


def test_values_that_are_no_scores_draw_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    odd = [{"2 views": 3, "x views": {"auc_5": 1}, "4 views": {"auc_5": "1", "auc_30": 2.0}}, {"2 views": [1]}]
    entries = [{"kind": "validation", "step": step, **scores} for step, scores in enumerate(odd)]
    log.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    write_curves([log], tmp_path / "curves.svg")
    svg = (tmp_path / "curves.svg").read_text()
    assert "auc_30 4 views" in svg
    assert "auc_5" not in svg
    log.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"log\.jsonl is no text in UTF-8"):
        read_log(log)
