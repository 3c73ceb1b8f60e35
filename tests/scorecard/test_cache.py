"""Predictions on disk come back as they were, and those of another identity are never scored."""

from pathlib import Path

import pytest
import torch

from vggt_int8.scorecard.cache import Predictions, StaleError, folder_name

OUTPUTS = {"pose_enc": torch.rand(2, 9), "depth": torch.rand(2, 4, 5, 1)}
IDENTITY = {"model": {"kind": "samples", "value": "abc"}, "recipe": None, "version": "1"}


def begun(folder: Path, **changed: object) -> Predictions:
    predictions = Predictions(folder, "row", {**IDENTITY, **changed})
    predictions.begin()
    return predictions


def test_what_is_written_is_read(tmp_path: Path) -> None:
    row = begun(tmp_path / "row")
    assert not row.has(0)
    row.write(0, {**OUTPUTS, "images": torch.zeros(1)})
    assert row.has(0)
    found = row.read(0)
    assert list(found) == ["pose_enc", "depth"]
    assert all(torch.equal(found[name], OUTPUTS[name]) for name in found)
    row.write_facts({"complete": True})
    assert begun(tmp_path / "row").facts() == {"complete": True}, "what is there is kept"
    row.check()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"recipe": {"name": "int8_dynamic"}}, "recipe was None and is {'name': 'int8_dynamic'}"),
        ({"model": {"kind": "samples", "value": "xyz"}}, "model.value was 'abc' and is 'xyz'"),
        ({"version": "2"}, "version was '1' and is '2'"),
        ({"more": 1}, "more was None and is 1"),
    ],
)
def test_stale_predictions_are_refused_with_the_way_out(tmp_path: Path, changed: dict, message: str) -> None:
    begun(tmp_path).write(0, OUTPUTS)
    other = Predictions(tmp_path, "row", {**IDENTITY, **changed})
    with pytest.raises(StaleError) as caught:
        other.check()
    assert message in str(caught.value)
    assert "--overwrite" in str(caught.value)
    for use in (other.has, other.read):  # even if row.json were changed by hand
        with pytest.raises(StaleError, match=r"0000.safetensors is stale"):
            use(0)


def test_clearing_takes_our_files_alone(tmp_path: Path) -> None:
    row = begun(tmp_path)
    row.write(0, OUTPUTS)
    row.write(12345, OUTPUTS)
    (tmp_path / "mine.txt").write_text("mine")
    row.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(FileExistsError, match=r"holds files and no row.json"):
        row.check()


def test_a_beginning_that_was_killed_is_no_obstacle(tmp_path: Path) -> None:
    row = Predictions(tmp_path / "row", "row", {"model": "a"})
    row.folder.mkdir()
    (row.folder / ".row.json.partial-0123abcd").write_text("half a fi")
    row.check()
    assert list(row.folder.iterdir()) == []


def test_damaged_files_are_named(tmp_path: Path) -> None:
    row = begun(tmp_path)
    row.write(0, OUTPUTS)
    (tmp_path / "0000.safetensors").write_bytes(b"damaged")
    with pytest.raises(StaleError, match=r"0000.safetensors is damaged"):
        row.read(0)
    for text in ("[", "[]", '{"identity": {}}'):
        (tmp_path / "row.json").write_text(text)
        with pytest.raises(StaleError, match=r"row.json is damaged"):
            row.check()


def test_folders_of_labels_are_apart() -> None:
    labels = ["a/b", "a-b", "a b", "embedded", "../../etc", "x" * 300]
    names = [folder_name(label) for label in labels]
    assert len(set(names)) == len(labels)
    assert folder_name("embedded") == "embedded"
    assert all("/" not in name and not name.startswith(".") and len(name) < 100 for name in names)
