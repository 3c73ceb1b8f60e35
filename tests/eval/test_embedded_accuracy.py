"""The command behind the embedded model's numbers: its tables and its JSON say the same, and nothing is left out
in silence."""

import json
from pathlib import Path

import pytest

from benchmarks.embedded_accuracy import main
from vggt_int8.model import VGGT


def run(model: VGGT, tmp_path: Path, *options: str) -> dict:
    model.save_pretrained(tmp_path / "model")
    few = ["--scenes", "3", "--views", "2", "--calibration-scenes", "1", "--device", "cpu"]
    main(["--model", str(tmp_path / "model"), *few, *options, "--out", str(tmp_path / "scores.json")])
    return json.loads((tmp_path / "scores.json").read_text())


def test_plain_and_hard_stand_beside_each_other(
    strong_model: VGGT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variants = ["int8_weight_only", "int8_dynamic", "int8_static"]
    document = run(strong_model, tmp_path, "--outliers", "0", "--variants", *variants)
    rows = {(row["model"], row["variant"]): row for row in document["rows"]}
    assert list(rows) == [(kind, variant) for variant in ["fp32", *variants] for kind in ("plain", "hard")]
    assert rows["hard", "fp32"] == {**rows["plain", "fp32"], "model": "hard"}, "the function has changed"
    hard = [rows["hard", variant]["relative"]["depth"] for variant in variants]
    assert hard == sorted(hard)
    text = capsys.readouterr().out
    for variant in variants:
        (line,) = [line for line in text.splitlines() if line.startswith(variant)]
        assert f"{rows['plain', variant]['abs_rel']:.4f}" in line
        assert f"{rows['hard', variant]['relative']['depth']:.2e}" in line
    change = rows["hard", "int8_dynamic"]["differences"]["abs_rel"]
    plain, other = (rows["hard", name]["abs_rel"] for name in ("fp32", "int8_dynamic"))
    assert change["value"] == pytest.approx(100 * (other / plain - 1), abs=1e-3)
    assert f"{change['value']:+.2f} [{change['low']:+.2f}, {change['high']:+.2f}]" in text
    assert "differences" not in rows["plain", "fp32"]
    low, high = document["ranges"]["hard"]["global attn.qkv"]
    assert f"{low:.1f} ... {high:.1f}" in text
    assert low > 4 * document["ranges"]["plain"]["global attn.qkv"][0]


def test_what_a_backend_cannot_run_is_listed(
    strong_model: VGGT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = run(strong_model, tmp_path, "--backend", "native", "--variants", "int8_dynamic", "llm_int8")
    assert [row["variant"] for row in document["rows"]] == ["fp32", "int8_dynamic"]
    assert list(document["left_out"]) == ["plain:llm_int8"]
    assert "left out: plain:llm_int8: backend 'native' cannot run" in capsys.readouterr().out
