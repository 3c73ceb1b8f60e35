"""`vggt-int8 push`: what would go up, and a card that says what was measured and what was not."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError

from tests.bench.conftest import make_row
from vggt_int8.bench.records import append_row

__all__ = ["make_row"]  # a fixture
REPO = "me/tiny.w8a8"
LICENSED = ("--license", "cc-by-nc-4.0")


@pytest.fixture
def checkpoint(tiny_int8: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_int8, tmp_path / "tiny"))


def shown(cli, *arguments: object) -> dict:
    return json.loads(cli("push", *arguments, "--dry-run", "--json"))


def test_nothing_is_sent_in_a_dry_run(cli, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: pytest.fail("the Hub is asked"))
    (checkpoint / "notes.txt").write_text("mine")
    found = shown(cli, checkpoint, REPO, "--base-model", "facebook/VGGT-1B", "--tag", "indoor")
    assert list(found["files"]) == ["config.json", "model.safetensors", "README.md"]
    card = ModelCard(found["card"])
    assert card.data.base_model_relation == "quantized"
    assert card.data.license_link == "https://huggingface.co/facebook/VGGT-1B"
    assert "indoor" in card.data.tags
    assert "## Not measured\n\n- Accuracy: nothing was measured of these weights.\n- Time and memory" in card.content
    assert "README.md" in cli("push", checkpoint, REPO, *LICENSED, "--dry-run")


def test_a_card_knows_what_its_weights_were_made_from(cli, tmp_path: Path) -> None:
    """A checkpoint says so itself, since nobody remembers; what was quantized from a disk has the name of its file."""
    cli("quantize", "embedded", "-o", tmp_path / "small")
    told = cli("push", tmp_path / "small", REPO, "--dry-run")
    assert "no base model" not in told
    assert "the small model inside the package" in told
    assert "`vggt-int8 quantize embedded -o FOLDER --recipe int8_dynamic`" in told
    assert "Other machines" not in told  # than none


@pytest.mark.slow
def test_the_card_tells_what_was_measured(cli, tiny: Path, checkpoint: Path, make_row) -> None:
    cli("eval", tiny, checkpoint, "--scenes", 2, "--views", 3, "--points", 50, "-o", checkpoint / "scores")
    for frames, ms in ((1, 2.5), (10, 30.0)):
        append_row(checkpoint / "bench.jsonl", make_row("int8_dynamic:native", frames, ms))
    append_row(checkpoint / "bench.jsonl", make_row("fp16:native", 1, 99.0))
    card = shown(cli, checkpoint, REPO, *LICENSED)["card"]
    lines = card.splitlines()
    scores = json.loads((checkpoint / "scores" / "scores.json").read_text())
    before, after = (entry["scores"]["abs_rel"] for entry in scores["rows"])
    assert any(line.startswith(f"| depth AbsRel | {before:.4g} | {after:.4g} | – | ") for line in lines)
    assert any(line.startswith("| AUC@30 (%) | ") for line in lines)
    assert [line.split(" | ")[2] for line in lines if "int8_dynamic:native |" in line] == ["2.5", "30.0"]
    assert "99.0" not in card
    assert "2 rendered scenes (split held_out) of 3 views" in card
    assert "- Accuracy on photographs: the scores are of synthetic scenes" in card
    assert "nothing was measured" not in card


def test_scores_of_other_weights_are_refused(cli, checkpoint: Path, tmp_path: Path) -> None:
    rows = [{"identity": {"model": {"kind": "save_id", "value": "another"}}, "scores": {}}]
    (tmp_path / "scores").mkdir()
    document = {"rows": rows, "data": {"kind": "rendered"}, "machine": {"cpu": "Xeon"}}
    (tmp_path / "scores" / "scores.json").write_text(json.dumps(document))
    told = cli("push", checkpoint, REPO, "--scores", tmp_path / "scores", "--dry-run", code=2)
    assert "the scores do not speak of" in told
    (tmp_path / "scores" / "scores.json").write_text("{}")
    assert "is no scores.json" in cli("push", checkpoint, REPO, "--scores", tmp_path / "scores", "--dry-run", code=2)


def test_what_should_not_go_up_is_refused(cli, checkpoint: Path, tmp_path: Path) -> None:
    assert "owner/name" in cli("push", checkpoint, "tiny", "--dry-run", code=2)
    assert "is no folder" in cli("push", tmp_path / "no", REPO, "--dry-run", code=2)
    content = bytearray((checkpoint / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (checkpoint / "model.safetensors").write_bytes(content)
    assert "model.safetensors" in cli("push", checkpoint, REPO, "--dry-run", code=2)


@pytest.mark.parametrize(("status", "says"), [(401, "hf auth login"), (403, "may write"), (500, "says 500")])
def test_a_refusal_names_the_way_out(
    cli, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, status: int, says: str
) -> None:
    import httpx2

    def refuse(*_: object, **__: object) -> None:
        response = httpx2.Response(status, request=httpx2.Request("POST", "https://huggingface.co/api/repos/create"))
        raise HfHubHTTPError(f"{status} Client Error", response=response)

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    assert says in cli("push", checkpoint, REPO, *LICENSED, code=1)


def test_a_hub_that_does_not_answer_is_said(cli, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2

    def fail(*_: object, **__: object) -> None:
        raise httpx2.ConnectError("Name or service not known")

    monkeypatch.setattr(HfApi, "create_repo", fail)
    assert "cannot be reached" in cli("push", checkpoint, REPO, *LICENSED, code=1)
