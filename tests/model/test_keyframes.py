"""Key frames in the plain network, against exact attention in which a mask hides the tokens of all other frames."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vggt_int8.model import VGGT, layers
from vggt_int8.model.layers import key_frames

TOKENS = 12 + 5  # a frame of 42 x 56 pixels


def images_of(batch: int, frames: int) -> Tensor:
    return torch.rand(batch, frames, 3, 42, 56, generator=torch.Generator().manual_seed(frames))


@pytest.mark.parametrize(("frames", "count"), [(1, 1), (7, 1), (7, 3), (7, 6), (7, 7), (100, 40), (1000, 24)])
def test_key_frames_are_the_first_and_others_evenly_spread(frames: int, count: int) -> None:
    found = key_frames(frames, count, device=torch.device("cpu")).tolist()
    assert found[0] == 0
    assert len(set(found)) == len(found) == count
    steps = [b - a for a, b in zip(found, [*found[1:], frames], strict=True)]
    assert sum(steps) == frames
    assert max(steps) - min(steps) <= 1


def masked(
    monkeypatch: pytest.MonkeyPatch, model: VGGT, images: Tensor, how: list[str], count: int
) -> dict[str, Tensor]:
    """The network's result with exact attention, whose global blocks cannot see what `how` excludes."""
    frames = images.shape[1]
    attend, global_calls = F.scaled_dot_product_attention, iter(how)
    frame = torch.arange(frames * TOKENS) // TOKENS
    seen_frames = torch.tensor([i * frames // count for i in range(count)])

    def spy(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.shape[2] != frames * TOKENS:  # encoder, frame blocks, camera head
            return attend(q, k, v)
        word, mask = next(global_calls), torch.ones(len(frame), len(frame), dtype=torch.bool)
        if word == "keyframes":
            mask = torch.isin(frame, seen_frames)[None].expand_as(mask)
        elif word == "frames":
            mask = frame[:, None] == frame[None]
        return attend(q, k, v, attn_mask=mask)

    with monkeypatch.context() as patch:
        patch.setattr(layers.F, "scaled_dot_product_attention", spy)
        output = dict(model(images).items())
    assert next(global_calls, None) is None, "not every global block was masked"
    return output


CHOICES: list[tuple[Any, int, int]] = [
    ("keyframes", 1, 3),
    ("keyframes", 3, 7),
    (["frames", "keyframes", "exact", "keyframes"], 2, 5),
    ("frames", 1, 4),
]


@pytest.mark.parametrize(("how", "count", "frames"), CHOICES)
def test_key_frames_are_all_that_queries_see(
    make_model: Callable[..., VGGT], monkeypatch: pytest.MonkeyPatch, how: Any, count: int, frames: int
) -> None:
    model, images = make_model(torch.float64), images_of(2, frames).double()
    by_layer = [how] * model.config.depth if isinstance(how, str) else how
    keyframes = count if "keyframes" in by_layer else None
    with torch.no_grad():
        want = masked(monkeypatch, model, images, by_layer, count)
        got = model(images, global_attention=how, keyframes=keyframes)
        exact = model(images)
    for name in ("pose_enc", "depth", "world_points"):  # fp32 at the end
        torch.testing.assert_close(got[name], want[name], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(got[name], exact[name], rtol=1e-3, atol=1e-3), "the choice changed nothing"


def test_as_many_key_frames_as_frames_change_no_bit(make_model: Callable[..., VGGT]) -> None:
    model, images = make_model(), images_of(1, 3)
    with torch.no_grad():
        want, got = model(images), model(images, global_attention="keyframes", keyframes=3)
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_what_does_not_fit_the_network_is_refused(make_model: Callable[..., VGGT]) -> None:
    model = make_model()
    with pytest.raises(ValueError, match="3 words, but the network has 4 global blocks"):
        model(images_of(1, 2), global_attention=["exact"] * 3)
    with pytest.raises(ValueError, match="keyframes=2 has no effect"):
        model(images_of(1, 2), keyframes=2)


def test_gradients_pass_through_key_frames(make_model: Callable[..., VGGT]) -> None:
    model = make_model().train()
    model(images_of(1, 3), global_attention="keyframes", keyframes=2).depth.mean().backward()
    assert model.aggregator.global_blocks[0].attn.qkv.weight.grad.abs().sum() > 0
