"""Work is counted exactly for any number of frames, and floors follow from it."""

import pytest
import torch

from vggt_int8.bench import cost
from vggt_int8.bench.cost import Ceilings, Work, WorkCounter, _count, measure_ceilings
from vggt_int8.bench.source import Source
from vggt_int8.model.config import VGGTConfig
from vggt_int8.model.vggt import VGGT


@pytest.mark.slow
def test_the_polynomial_is_the_count(tiny_source: Source, tiny_work: WorkCounter) -> None:
    with torch.device("meta"):
        model = VGGT(tiny_source.config).eval().requires_grad_(False)
    counted, direct = tiny_work(11), _count(model, 11, (42, 56))
    assert counted.total == pytest.approx(direct.total)
    # PyTorch multiplies the camera head's repeated pose tokens as a batch, like attention, or not: 0.1 % of this model.
    assert vars(counted) == pytest.approx(vars(direct), rel=5e-3)


@pytest.mark.slow
def test_work_of_vggt_1b_with_fewer_blocks() -> None:
    """By hand: blocks of 12 C^2 weights, attentions inside frames and over all; the camera head's are few."""
    tokens, frames, width = 28 * 37 + 5, 10, 1024
    config = VGGTConfig(encoder_depth=4, depth=4, dpt_layers=[0, 1, 2, 3], enable_track=False)
    work = WorkCounter(config, (392, 518))(frames)
    assert work.linears == pytest.approx(2 * 12 * width**2 * tokens * frames * 12, rel=1e-2)
    assert work.attention == pytest.approx(4 * width * (8 * tokens**2 * frames + 4 * (tokens * frames) ** 2), rel=1e-3)
    assert work.convolutions == pytest.approx(10 * 0.435e12, rel=1e-2)


def test_key_frames_take_the_square_out_of_the_work(tiny_work: WorkCounter) -> None:
    work = tiny_work
    assert work(7, keyframes=7) == work(7)
    parts = [work(frames, keyframes=7) for frames in (7, 8, 9)]
    for name in ("linears", "attention", "convolutions"):
        first, second, third = (getattr(part, name) for part in parts)
        assert third - second == pytest.approx(second - first, rel=1e-3)  # the camera head, as above
        assert second <= getattr(work(8), name)
    assert parts[2].attention < work(9).attention


def test_floors() -> None:
    ceilings = Ceilings("bfloat16", product=500.0, int8=1000.0, attention=250.0, copy=4000.0)
    work = Work(linears=1e12, attention=1e12, convolutions=1e12)
    assert ceilings.floor_ms(work, 0, int8=False) == pytest.approx(2 + 4 + 2)
    assert ceilings.floor_ms(work, 0, int8=True) == pytest.approx(1 + 4 + 2)
    assert ceilings.floor_ms(work, 40 * 10**9, int8=True) == pytest.approx(10)


def test_ceilings_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "SECONDS", 0.01)
    monkeypatch.setattr(cost, "LOADS", {"cpu": (256, 256, 1 << 24)})
    found = measure_ceilings(torch.device("cpu"))
    assert found.dtype in ("bfloat16", "float32")
    assert 1e-3 < min(found.product, found.int8, found.attention) < 1e3
    assert 0.1 < found.copy < 1e4
