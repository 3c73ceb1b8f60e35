"""What `benchmarks.scaling` and its parts make of measurements: the steady state, rates, aims reached and missed."""

import json
from pathlib import Path

import pytest

from benchmarks import scaling, training_throughput
from benchmarks.batch_throughput import steady


def test_the_steady_state_begins_when_the_slowest_gpu_has_its_first_scene() -> None:
    finished = [(0.0, "cuda:0"), (1.0, "cuda:0"), (5.0, "cuda:1"), (6.0, "cuda:0"), (7.0, "cuda:1"), (9.5, "cuda:0")]
    assert steady(finished) == 1.5
    with pytest.raises(ValueError, match="take more scenes"):
        steady(finished[:3])


def test_training_is_timed_where_nothing_compiles_any_more(tmp_path: Path) -> None:
    entries = [{"kind": "start"}, *({"kind": "train", "frames_per_second": n} for n in (1, 2, 3, 70, 80, 90))]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, entries)))
    assert training_throughput.rate(tmp_path / "log.jsonl") == 85
    (tmp_path / "log.jsonl").write_text(json.dumps(entries[0]))
    with pytest.raises(ValueError, match="no line of a step"):
        training_throughput.rate(tmp_path / "log.jsonl")


BATCH = {"images": 100, "batch_seconds_per_scene": {"1": 2.5, "8": 0.34}, "speed_up": {"1": 1.0, "8": 7.353}}
SCENE = [
    {"frames": 200, "way": "exact", "gpus": 1, "ms": 9000.0},
    {"frames": 200, "way": "exact", "gpus": 2, "ms": 5000.0, "speed_up": 1.8, "errors": {"depth": 0.001}},
    {"frames": 1000, "way": "exact", "gpus": 8, "ms": 41000.0, "speed_up": 5.4, "errors": {"depth": 0.03}},
    {"frames": 1000, "way": "keyframes:40", "gpus": 8, "ms": 2000.0, "speed_up": 6.0, "errors": {"depth": 0.001}},
]
TRAINING = [
    {"gpus": 1, "steps_per_second": 10.0, "speed_up": 1.0},
    {"gpus": 8, "steps_per_second": 9.5, "speed_up": 7.6},
]


def test_what_was_measured_stands_beside_what_was_aimed_at() -> None:
    found = scaling.lines_of([BATCH], SCENE, TRAINING)
    reached = {aim: good for aim, _, good in scaling.aims(found, SCENE)}
    assert reached == {
        "`batch`, scenes of 100, an hour: 0.93 of linear on 8": False,
        "200 frames exact on 2 GPUs: 1.7 x one": True,
        "1000 frames, exact, on 8 GPUs: 40.0 s": False,
        "1000 frames, keyframes:40, on 8 GPUs: 2.2 s": True,
        "outputs of one GPU within 0.02 of their size": False,
    }
    table = scaling.document(found, scaling.aims(found, SCENE)).splitlines()
    assert table[0] == "| | 1 GPU | 2 GPUs | 8 GPUs |"
    assert "| `batch`, scenes of 100, an hour | 1,440 (1.00 x) | – | 10,588 (7.35 x) |" in table
    assert "| 200 frames, exact, s | 9.00 (1.00 x) | 5.00 (1.80 x) | – |" in table
    assert "| training, steps a second (x: scenes a second) | 10.00 (1.00 x) | – | 9.50 (7.60 x) |" in table
