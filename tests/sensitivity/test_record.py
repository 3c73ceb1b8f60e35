"""What is measured is found again, what a kill cut off is not, and nothing of another measurement is used."""

from pathlib import Path

import pytest

from vggt_int8.sensitivity.record import OtherMeasurement, Record

IDENTITY = {"model": {"kind": "save_id", "value": "abc"}, "by": "group", "images": {"room": "1", "table": "2"}}


def written(path: Path) -> Record:
    record = Record(path, IDENTITY)
    record.write(0, "encoder", "base", {"rotation": 0.25, "depth": 0.5})
    record.write(1, "encoder", "base", {"rotation": 0.75})
    return record


def test_what_was_written_is_there_again(tmp_path: Path) -> None:
    written(tmp_path / "a")
    record = Record(tmp_path / "a", IDENTITY)
    assert record.has(0, "encoder", "base")
    assert not record.has(0, "encoder", "weight_only")
    assert record.errors("encoder", "base", 2) == [{"rotation": 0.25, "depth": 0.5}, {"rotation": 0.75}]


def test_a_line_that_was_cut_off_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "a"
    written(path)
    path.write_bytes(path.read_bytes()[:-9])
    record = Record(path, IDENTITY)
    assert record.has(0, "encoder", "base")
    assert not record.has(1, "encoder", "base")
    record.write(1, "encoder", "base", {"rotation": 0.5})
    assert Record(path, IDENTITY).errors("encoder", "base", 2)[1] == {"rotation": 0.5}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model": {"kind": "save_id", "value": "xyz"}}, "model.value was 'abc' and is 'xyz'"),
        ({"by": "layer"}, "by was 'group' and is 'layer'"),
        ({"images": {"room": "1", "table": "3"}}, "images.table was '2' and is '3'"),
        ({"images": {"room": "1"}}, "images.table was '2' and is None"),
    ],
)
def test_of_something_else_it_is_refused_or_begun_anew(tmp_path: Path, changed: dict, words: str) -> None:
    path = tmp_path / "a"
    written(path)
    before = path.read_bytes()
    with pytest.raises(OtherMeasurement) as caught:
        Record(path, IDENTITY | changed)
    assert words in str(caught.value)
    assert "--overwrite" in str(caught.value)
    assert path.read_bytes() == before
    assert not Record(path, IDENTITY | changed, overwrite=True).has(0, "encoder", "base")
    with pytest.raises(OtherMeasurement):
        Record(path, IDENTITY)


@pytest.mark.parametrize(
    "entry", ['"error": {}', '"errors": {"rotation": "much"}', '"errors": 3', '"errors": {"speed": 1}']
)
def test_a_line_that_is_none_is_said(tmp_path: Path, entry: str) -> None:
    line = f'{{"scene": 0, "unit": "a", "choice": "base", {entry}}}'
    path = tmp_path / "a"
    written(path)
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(OtherMeasurement, match="holds a line that is no measurement"):
        Record(path, IDENTITY)


def test_a_file_of_something_else_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("my notes\n")
    with pytest.raises(OtherMeasurement, match="does not begin with what was measured"):
        Record(tmp_path / "a", IDENTITY)


def test_what_is_not_finite_is_not_written(tmp_path: Path) -> None:
    record = Record(tmp_path / "a", IDENTITY)
    with pytest.raises(FloatingPointError, match="encoder, base: on scene 0 its errors are not finite"):
        record.write(0, "encoder", "base", {"depth": float("nan")})
    assert not Record(tmp_path / "a", IDENTITY).has(0, "encoder", "base")
