"""Similarities and what is measured after them: known answers, worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from vggt_int8.eval.metrics import trajectory_error
from vggt_int8.geometry import project_points, quaternion_to_rotation
from vggt_int8.similarity import Similarity, robust_similarity, umeyama


def some_similarity() -> Similarity:
    rotation = quaternion_to_rotation(torch.tensor([0.3, -0.5, 0.1, 0.8], dtype=torch.float64))
    return Similarity(2.5, rotation, torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))


def looking_from(centers: Tensor) -> Tensor:
    """Extrinsics [S, 3, 4] of cameras at these places, each turned another way."""
    turns = torch.linspace(-1, 1, 4 * len(centers), dtype=torch.float64).view(-1, 4)
    rotation = quaternion_to_rotation(turns)
    return torch.cat([rotation, -rotation @ centers.double()[:, :, None]], dim=-1)


def test_a_known_similarity_comes_back_from_points_on_a_plane_too() -> None:
    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for source in (points, points * torch.tensor([1.0, 1.0, 0.0])):
        found = umeyama(source, some_similarity().apply(source))
        assert found.scale == pytest.approx(2.5)
        torch.testing.assert_close(found.rotation, some_similarity().rotation)
        torch.testing.assert_close(found.translation, some_similarity().translation)


def test_a_mirror_image_is_not_reached_by_a_reflection() -> None:
    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    found = umeyama(points, points * torch.tensor([1.0, 1.0, -1.0]))
    assert torch.linalg.det(found.rotation).item() == pytest.approx(1)


def test_no_similarity_nearby_is_better() -> None:
    generator = torch.Generator().manual_seed(1)
    source = torch.randn(15, 3, generator=generator, dtype=torch.float64)
    target = some_similarity().apply(source) + torch.randn(15, 3, generator=generator, dtype=torch.float64)
    best = umeyama(source, target)

    def error(similarity: Similarity) -> float:
        return (similarity.apply(source) - target).square().sum().item()

    for axis in range(3):
        for step in (-1e-3, 1e-3):
            turn = quaternion_to_rotation(torch.eye(4, dtype=torch.float64)[axis] * step + torch.eye(4)[3].double())
            move = torch.eye(3, dtype=torch.float64)[axis] * step
            assert error(Similarity(best.scale, turn @ best.rotation, best.translation)) > error(best)
            assert error(Similarity(best.scale, best.rotation, best.translation + move)) > error(best)
            assert error(Similarity(best.scale + step, best.rotation, best.translation)) > error(best)


def test_one_similarity_after_another() -> None:
    first, second = some_similarity(), Similarity(0.5, some_similarity().rotation.mT, torch.ones(3).double())
    points = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(second.after(first).apply(points), second.apply(first.apply(points)))


def test_the_inverse_leads_back() -> None:
    points = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(some_similarity().inverse().apply(some_similarity().apply(points)), points)


def test_cameras_go_along_with_points() -> None:
    points = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    extrinsic, moved = looking_from(torch.randn(4, 3)), some_similarity()
    intrinsic = torch.tensor([[50.0, 0, 20], [0, 60, 30], [0, 0, 1]], dtype=torch.float64).expand(4, 3, 3)
    pixels, depth = project_points(points.expand(4, -1, -1), extrinsic, intrinsic)
    there, deep = project_points(moved.apply(points).expand(4, -1, -1), moved.apply_to_extrinsic(extrinsic), intrinsic)
    torch.testing.assert_close(there, pixels)
    torch.testing.assert_close(deep, moved.scale * depth)


def test_weights_count_as_repeated_points() -> None:
    generator = torch.Generator().manual_seed(2)
    source, target = (torch.randn(6, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    times = torch.tensor([1, 3, 2, 0, 1, 4])
    weighted = umeyama(source, target, times / 7)
    repeated = umeyama(source.repeat_interleave(times, 0), target.repeat_interleave(times, 0))
    torch.testing.assert_close(weighted.apply(source), repeated.apply(source))
    for wrong in (times - 1, times.double() * torch.nan, times * 0, times[:5]):
        with pytest.raises(ValueError, match="weights"):
            umeyama(source, target, wrong)


def test_two_in_five_wrong_pairs_do_not_move_the_robust_similarity() -> None:
    generator = torch.Generator().manual_seed(3)
    source = torch.randn(500, 3, generator=generator, dtype=torch.float64)
    target = some_similarity().apply(source) + 0.001 * torch.randn(500, 3, generator=generator)
    target[:200] += torch.tensor([3.0, 1.0, 0.0])  # a thing that has moved
    found, off = robust_similarity(source, target, torch.ones(500), torch.full((500,), 2.0))
    assert (found.apply(source) - some_similarity().apply(source)).norm(dim=-1).max() < 0.001
    assert off[:200].min() > 1
    assert off[200:].max() < 0.005
    plain = umeyama(source, target)
    assert (plain.apply(source) - some_similarity().apply(source)).norm(dim=-1).max() > 0.5


SQUARE = torch.tensor([[1.0, 1, 0], [-1, 1, 0], [-1, -1, 0], [1, -1, 0]])


def test_the_trajectory_error_by_hand() -> None:
    """Corners of a square, raised and lowered by 1 in turn: by symmetry the best similarity only scales. With centred
    points, scale = sum of products / sum of squares = 2 / 3, and the mean squared distance is 2 - 2 · 2 / 3."""
    bent = SQUARE + torch.tensor([[0.0, 0, 1], [0, 0, -1], [0, 0, 1], [0, 0, -1]])
    truth, predicted = looking_from(SQUARE), looking_from(some_similarity().apply(bent))
    assert trajectory_error(predicted, truth) == pytest.approx(math.sqrt(2 / 3))
    assert trajectory_error(looking_from(some_similarity().apply(SQUARE)), truth) == pytest.approx(0, abs=1e-7)
    assert trajectory_error(predicted, looking_from(10 * SQUARE)) == pytest.approx(10 * math.sqrt(2 / 3))


def test_cameras_that_stand_in_one_place_are_as_wrong_as_the_truth_is_wide() -> None:
    assert trajectory_error(looking_from(torch.ones(4, 3)), looking_from(SQUARE)) == pytest.approx(math.sqrt(2))


def test_what_has_no_answer_is_named() -> None:
    two = looking_from(SQUARE[:2])
    with pytest.raises(ValueError, match="at least three views, got 2"):
        trajectory_error(two, two)
    with pytest.raises(ValueError, match="differ"):
        trajectory_error(two, looking_from(SQUARE))
    with pytest.raises(ValueError, match=r"\[2, 3\] and \[4, 3\] must both"):
        umeyama(SQUARE[:2], SQUARE)
    with pytest.raises(ValueError, match="must be finite"):
        umeyama(SQUARE, SQUARE * torch.nan)
