"""Losses of distillation, against values worked out by hand."""

import dataclasses

import pytest
import torch
from torch import Tensor

from vggt_int8.model import VGGTOutput
from vggt_int8.training.distill import DistillConfig, Prediction, distill_losses, map_loss, pose_loss

ALONE = {entry.name: 0.0 for entry in dataclasses.fields(DistillConfig)} | {"gamma": 0.5}


def prediction(scale: float = 1.0, seed: int = 0) -> Prediction:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    output = VGGTOutput(
        depth=scale * (1 + draw(2, 3, 4, 5, 1)),
        depth_conf=1 + draw(2, 3, 4, 5),
        world_points=scale * draw(2, 3, 4, 5, 3),
        world_points_conf=1 + draw(2, 3, 4, 5),
        pose_enc_list=(draw(2, 3, 9), draw(2, 3, 9)),
    )
    return Prediction(output, (draw(2, 3, 7, 8), draw(2, 3, 7, 8)))


def test_what_is_alike_has_no_loss() -> None:
    losses = distill_losses(prediction(), prediction(), DistillConfig())
    assert set(losses) == {"features", "pose", "depth", "points", "confidence", "total"}
    assert all(value == 0 for value in losses.values())


def test_the_total_is_the_weighted_sum() -> None:
    config = DistillConfig(pose=2.0, depth=3.0, points=5.0, confidence=7.0, features=11.0)
    losses = distill_losses(prediction(seed=1), prediction(), config)
    expected = sum(getattr(config, name) * value for name, value in losses.items() if name != "total")
    assert losses["total"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert all(value > 0 for value in losses.values())
    alone = distill_losses(prediction(seed=1), prediction(), DistillConfig(**{**ALONE, "depth": 1.0}))
    assert alone["total"] == alone["depth"]


def test_a_network_without_a_head_is_distilled_without_it() -> None:
    output = VGGTOutput(depth=torch.ones(1, 1, 2, 2, 1), depth_conf=torch.full((1, 1, 2, 2), 2.0))
    tokens = (torch.ones(1, 1, 2, 2),)
    losses = distill_losses(Prediction(output, tokens), Prediction(output, tokens), DistillConfig())
    assert set(losses) == {"features", "depth", "confidence", "total"}


def test_maps_by_hand() -> None:
    """Two scenes: one off by 1 where the teacher trusts 3 of 4 shares, its size 2; the other right."""
    theirs = torch.full((2, 1, 1, 2, 1), 2.0)
    ours = theirs.clone()
    ours[0, 0, 0, 0] += 1
    certain = torch.tensor([3.0, 1.0]).view(1, 1, 1, 2).expand(2, 1, 1, 2)
    assert map_loss(ours, theirs, certain).item() == pytest.approx((3 * 1 / (3 * 2 + 1 * 2) + 0) / 2)
    assert map_loss(ours * 100, theirs * 100, certain).item() == pytest.approx(3 / 8 / 2)
    points = torch.tensor([3.0, 4.0, 0.0]).expand(1, 1, 1, 2, 3)
    assert map_loss(points + torch.tensor([0.0, 0.0, 1.0]), points, certain[:1]).item() == pytest.approx(1 / 5)


def test_poses_by_hand() -> None:
    """The last refinement weighs 1, the one before gamma; translations count by their mean size."""
    theirs = torch.zeros(1, 1, 9)
    theirs[..., :3] = 4.0
    translated, turned, wider = theirs.clone(), theirs.clone(), theirs.clone()
    translated[..., :3] += 1
    turned[..., 3:7] += 0.1
    wider[..., 7:] += 0.2
    last = [pose_loss((theirs, ours), (theirs, theirs), 0.5).item() for ours in (translated, turned, wider)]
    assert last == pytest.approx([0.25 / 1.5, 0.1 / 1.5, 0.5 * 0.2 / 1.5], rel=1e-5)
    assert pose_loss((translated, theirs), (theirs, theirs), 0.5).item() == pytest.approx(0.5 * 0.25 / 1.5)
    # What the teacher's own refinement is, not its result, is what each of ours follows.
    assert pose_loss((translated, theirs), (translated, theirs), 0.5) == 0


def test_features_by_hand() -> None:
    theirs, ours = torch.full((1, 1, 1, 4), 2.0), torch.full((1, 1, 1, 4), 2.0)
    ours[..., 0] = 3.0
    losses = distill_losses(
        Prediction(VGGTOutput(), (ours, theirs)), Prediction(VGGTOutput(), (theirs, theirs)), DistillConfig()
    )
    assert losses["features"].item() == pytest.approx((1 / 16 + 0) / 2)


def test_half_precision_is_measured_in_fp32() -> None:
    ours, theirs = prediction(seed=1), prediction()
    half = Prediction(ours.output, tuple(tokens.bfloat16() for tokens in ours.tokens))
    losses = distill_losses(half, theirs, DistillConfig())
    assert all(value.dtype == torch.float32 for value in losses.values())
