"""Work is counted exactly for any number of frames, and floors follow from it."""

import pytest
import torch

from vggt_int8.bench.cost import Ceilings, Work, WorkCounter, _count
from vggt_int8.bench.source import Source
from vggt_int8.model.config import VGGTConfig
from vggt_int8.model.vggt import VGGT


def test_the_polynomial_is_the_count(tiny_source: Source) -> None:
    size = (42, 56)
    with torch.device("meta"):
        model = VGGT(tiny_source.config).eval().requires_grad_(False)
    counted, direct = WorkCounter(tiny_source.config, size)(11), _count(model, 11, size)
    assert counted.total == pytest.approx(direct.total)
    # PyTorch multiplies the camera head's repeated pose tokens as a batch, like attention, or not: 0.1 % of this model.
    assert vars(counted) == pytest.approx(vars(direct), rel=5e-3)


def test_vggt_1b_at_ten_frames() -> None:
    """Counted by hand: 72 blocks of 12 C^2 weights; 48 attentions inside frames, 24 over all; the camera head's."""
    tokens, frames, width = 28 * 37 + 5, 10, 1024
    work = WorkCounter(VGGTConfig(enable_track=False), (392, 518))(frames)
    blocks = 2 * 12 * width**2 * tokens * frames * 72
    attention = 4 * width * (48 * tokens**2 * frames + 24 * (tokens * frames) ** 2)
    assert work.linears == pytest.approx(blocks, rel=3e-3)
    assert work.attention == pytest.approx(attention, rel=1e-4)
    assert work.convolutions == pytest.approx(10 * 0.435e12, rel=1e-2)


def test_floors() -> None:
    ceilings = Ceilings("bfloat16", product=500.0, int8=1000.0, attention=250.0, copy=4000.0)
    work = Work(linears=1e12, attention=1e12, convolutions=1e12)
    assert ceilings.floor_ms(work, 0, int8=False) == pytest.approx(2 + 4 + 2)
    assert ceilings.floor_ms(work, 0, int8=True) == pytest.approx(1 + 4 + 2)
    assert ceilings.floor_ms(work, 40 * 10**9, int8=True) == pytest.approx(10)
