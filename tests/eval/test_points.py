"""Scores of point clouds against values worked out by hand and against all distances, one by one."""

import math

import pytest
import torch
from torch import Tensor

from vggt_int8.eval.metrics import Similarity, normals_of_grid, point_scores, points, refine_alignment
from vggt_int8.geometry import quaternion_to_rotation


@pytest.fixture(params=["all distances", "scipy's k-d tree"])
def search(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to the nearest point."""
    if request.param == "all distances":
        monkeypatch.setattr(points, "_kd_tree", lambda: None)
    else:
        pytest.importorskip("scipy", reason="scipy is not installed: the extra eval, or test, has it")
    assert points.search_method() == request.param


@pytest.mark.usefixtures("search")
def test_by_hand() -> None:
    predicted = torch.tensor([[0.0, 0, 0], [1, 0, 0.3]])
    truth = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 2, 0]])
    found = point_scores(predicted, truth, threshold=0.35)
    assert found.accuracy == pytest.approx((0 + 0.3) / 2)
    far = math.sqrt(4 + 0.09)
    assert found.completeness == pytest.approx((0 + 0.3 + far) / 3)
    assert found.completeness_median == pytest.approx(0.3)
    assert (found.precision, found.recall) == pytest.approx((100, 200 / 3))
    assert found.f_score == pytest.approx(2 * 100 * (200 / 3) / (100 + 200 / 3))
    assert found.normal_consistency is None
    none = point_scores(predicted + 10, truth, threshold=0.35)
    assert (none.precision, none.recall, none.f_score) == (0, 0, 0)


@pytest.mark.usefixtures("search")
def test_normals_by_hand() -> None:
    """Normals that are 60 degrees apart, or opposite, at one pair; NaN at another."""
    places = torch.tensor([[0.0, 0, 0], [5, 0, 0], [10, 0, 0]])
    true = torch.tensor([[0.0, 0, 1], [0, 0, 1], [0, 0, 1]])
    tilted = [0, math.sin(math.radians(60)), math.cos(math.radians(60))]
    normals = torch.tensor([tilted, [0, 0, -1], [math.nan] * 3])
    found = point_scores(places, places, 1.0, normals, true)
    assert found.normal_consistency == pytest.approx((0.5 + 1) / 2)
    assert point_scores(places, places, 1.0, normals * math.nan, true).normal_consistency is None


@pytest.mark.usefixtures("search")
def test_nearest_is_that_of_all_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "_PAIRS", 1000)  # several blocks, the last one smaller
    generator = torch.Generator().manual_seed(0)
    queries, cloud = (1e3 + torch.rand(n, 3, generator=generator) for n in (77, 301))
    naive = torch.tensor([[math.dist(q, c) for c in cloud.tolist()] for q in queries.tolist()], dtype=torch.float64)
    distance, index = points.nearest(queries, cloud)
    torch.testing.assert_close(distance, naive.min(1).values)
    assert torch.equal(index, naive.argmin(1))


def sphere(count: int) -> Tensor:
    """Points of an egg, which fits itself in one position only."""
    spread = torch.randn(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = spread / spread.norm(dim=-1, keepdim=True)
    return unit * torch.tensor([1.0, 1.5, 2.2]) + 0.2 * unit.square()


@pytest.mark.usefixtures("search")
def test_closest_points_find_back_what_was_moved_a_little() -> None:
    truth = sphere(400)
    turn = quaternion_to_rotation(torch.tensor([0.01, -0.02, 0.015, 1.0], dtype=torch.float64))
    moved = Similarity(0.97, turn, torch.tensor([0.02, -0.03, 0.01]).double()).apply(truth)
    start = Similarity(1.0, torch.eye(3).double(), torch.zeros(3).double())
    found = refine_alignment(moved, truth, start, steps=200)
    before = point_scores(moved, truth, 0.1).accuracy
    assert point_scores(found.apply(moved), truth, 0.1).accuracy < 0.2 * before
    assert refine_alignment(truth, truth, start) is start


@pytest.mark.usefixtures("search")
def test_far_points_do_not_pull_closest_points_away() -> None:
    truth = sphere(300)
    predicted = torch.cat([truth, torch.full((30, 3), 9.0).double()])
    start = Similarity(1.0, torch.eye(3).double(), torch.zeros(3).double())
    kept = refine_alignment(predicted, truth, start, distance=0.5)
    torch.testing.assert_close(kept.apply(truth), truth)


def test_normals_of_a_tilted_plane() -> None:
    v, u = torch.meshgrid(torch.arange(5.0), torch.arange(6.0), indexing="ij")
    plane = torch.stack([u, v, 2 * u], dim=-1)[None]
    normals = normals_of_grid(plane)
    expected = torch.tensor([-2.0, 0, 1]) / math.sqrt(5)
    torch.testing.assert_close(normals[0, 1:-1, 1:-1], expected.expand(3, 4, 3))
    assert normals[0, 0].isnan().all()
    assert normals[0, :, -1].isnan().all()
    plane[0, 2, 2] = math.nan
    assert normals_of_grid(plane)[0, 2, 3].isnan().all()
    assert normals_of_grid(torch.zeros(1, 4, 4, 3)).isnan().all()


@pytest.mark.parametrize(
    ("predicted", "threshold", "message"),
    [
        (torch.ones(0, 3), 1.0, r"predicted points \[0, 3\]"),
        (torch.ones(4, 2), 1.0, r"predicted points \[4, 2\]"),
        (torch.full((4, 3), math.nan), 1.0, "must be finite"),
        (torch.ones(4, 3), 0.0, "threshold is 0.0"),
    ],
)
def test_bad_clouds_are_named(predicted: Tensor, threshold: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        point_scores(predicted, torch.ones(4, 3), threshold)
