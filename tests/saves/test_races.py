"""A load beside saves into the same folder gives one of the two models, or says why not: never a mixture."""

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from vggt_int8 import VGGT, CheckpointError, VGGTConfig, VGGTInt8, quantize
from vggt_int8.saves.settled import load_settled

LOADS = 8


class Saver(threading.Thread):
    """Saves two models over each other until it is told to stop; in one file and in several."""

    def __init__(self, folder: Path, models: list[VGGT]) -> None:
        super().__init__(daemon=True)
        self.folder, self.models, self.over = folder, models, threading.Event()
        self.saves = 0

    def run(self) -> None:
        while not self.over.is_set():
            for model, size in zip(self.models, ("5GB", "150KB"), strict=True):
                model.save_pretrained(self.folder, max_shard_size=size)
                self.saves += 1


@contextmanager
def suppress_refusals(outcomes: Counter[str]) -> Iterator[None]:
    """Count the two clear errors, and let no other pass."""
    try:
        yield
    except CheckpointError as error:
        if not re.search("while it was being loaded|of a save that is going on", str(error)):
            raise
        outcomes["refused"] += 1


@pytest.fixture(params=["fp32", "int8"])
def saver(request: pytest.FixtureRequest, tmp_path: Path, make_bare: Callable[[], VGGTInt8]) -> Iterator[Saver]:
    models = [make_bare(), make_bare()]
    with torch.no_grad():
        for parameter in models[1].parameters():
            parameter.neg_()
    if request.param == "int8":
        models = [quantize(model, "int8_dynamic") for model in models]
    models[0].save_pretrained(tmp_path / "model")
    saver = Saver(tmp_path / "model", list(models))
    saver.start()
    yield saver
    saver.over.set()
    saver.join()


@pytest.mark.slow
def test_a_load_beside_saves(saver: Saver) -> None:
    states = [model.state_dict() for model in saver.models]
    ways: list[Any] = [VGGTInt8.from_pretrained]
    if not any(tensor.dtype == torch.int8 for tensor in states[0].values()):
        ways.append(VGGT.from_pretrained)
    outcomes: Counter[str] = Counter()
    for number in range(LOADS):
        with suppress_refusals(outcomes):
            loaded = None
            loaded = ways[number % len(ways)](saver.folder).state_dict()
        if loaded is None:
            continue
        same = [all(torch.equal(loaded[name], state[name]) for name in state) for state in states]
        assert sum(same) == 1, "a mixture"
        outcomes[str(same.index(True))] += 1
    assert saver.saves > 2
    assert outcomes.total() == LOADS


def test_a_change_is_seen_and_tried_once_more(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    calls = []

    def replaced_at_first() -> str:
        calls.append(1)
        if len(calls) < 2:
            (tmp_path / "new").write_text("{}")
            (tmp_path / "new").rename(file)
        return "loaded"

    file.write_text("{}")
    assert load_settled(str(tmp_path), None, replaced_at_first) == "loaded"
    assert len(calls) == 2

    def replaced_always() -> None:
        (tmp_path / "new").write_text("{}")
        (tmp_path / "new").rename(file)
        raise FileNotFoundError("gone")

    with pytest.raises(CheckpointError, match="was replaced again and again") as caught:
        load_settled(str(tmp_path), None, replaced_always)
    assert isinstance(caught.value.__cause__, FileNotFoundError)

    def wrong() -> None:
        calls.append(1)
        raise KeyError("its own")

    with pytest.raises(KeyError, match="its own"):
        load_settled(str(tmp_path), None, wrong)
    assert len(calls) == 3


def test_what_lies_beside_is_no_change(tmp_path: Path, tiny_checkpoint: Path) -> None:
    def load() -> VGGTConfig:
        (tmp_path / "log.txt").write_text("a line")
        return VGGTConfig.from_pretrained(tiny_checkpoint)

    assert load_settled(str(tmp_path), None, load) is not None
