"""Geometry against the reference network's numbers, and against what must hold for any camera."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vggt_int8 import geometry as g
from vggt_int8.difference import relative_error

GOLDEN = load_file(Path(__file__).parent / "data/parity/golden_geometry.safetensors")
IMAGE_SIZE = (392, 518)


def random_quaternions(n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    q = torch.randn(n, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (q / q.norm(dim=-1, keepdim=True)).to(dtype)


def random_extrinsics(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rotation = g.quaternion_to_rotation(torch.randn(n, 4, generator=generator))
    return torch.cat([rotation, torch.randn(n, 3, 1, generator=generator)], dim=-1)


def rotation_about(axis: list[float], degrees: float) -> Tensor:
    """Rotation matrix from the matrix exponential: independent of the code under test."""
    x, y, z = torch.nn.functional.normalize(torch.tensor(axis, dtype=torch.float64), dim=0).tolist()
    skew = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    return torch.linalg.matrix_exp(skew * math.radians(degrees)).float()


def test_pose_encoding_to_camera_matches_the_reference() -> None:
    extrinsic, intrinsic = g.pose_encoding_to_camera(GOLDEN["pose_enc"], IMAGE_SIZE)
    assert extrinsic.dtype == intrinsic.dtype == torch.float32
    assert extrinsic.shape == (2, 6, 3, 4)
    assert intrinsic.shape == (2, 6, 3, 3)
    assert relative_error(extrinsic, GOLDEN["extrinsic"]) < 1e-6
    assert relative_error(intrinsic, GOLDEN["intrinsic"]) < 1e-6


def test_camera_to_pose_encoding_matches_the_reference() -> None:
    pose_enc = g.camera_to_pose_encoding(GOLDEN["extrinsic"], GOLDEN["intrinsic"], IMAGE_SIZE)
    assert pose_enc.shape == (2, 6, 9)
    assert relative_error(pose_enc, GOLDEN["pose_enc_roundtrip"]) < 1e-6


def test_unproject_depth_matches_the_reference() -> None:
    depth, extrinsic = GOLDEN["unproject_depth"], GOLDEN["unproject_extrinsic"]
    with_channel = g.unproject_depth(depth, extrinsic, GOLDEN["unproject_intrinsic"])
    without = g.unproject_depth(depth.squeeze(-1), extrinsic, GOLDEN["unproject_intrinsic"])
    assert relative_error(with_channel, GOLDEN["unproject_points"]) < 1e-6
    assert torch.equal(with_channel, without)


def test_unproject_depth_tells_the_layouts_apart_when_the_image_is_one_pixel_wide() -> None:
    extrinsic, intrinsic = random_extrinsics(2), torch.eye(3).expand(2, 3, 3)
    assert g.unproject_depth(torch.ones(2, 5, 1), extrinsic, intrinsic).shape == (2, 5, 1, 3)
    assert g.unproject_depth(torch.ones(2, 5, 1, 1), extrinsic, intrinsic).shape == (2, 5, 1, 3)
    with pytest.raises(ValueError, match=r"depth has shape \(2, 5, 4, 3\)"):
        g.unproject_depth(torch.ones(2, 5, 4, 3), extrinsic, intrinsic)


def test_zero_field_of_view_makes_the_focal_length_alone_infinite() -> None:
    pose_enc = GOLDEN["pose_enc"].clone()
    pose_enc[0, 0, 8] = 0
    pose_enc[0, 1, 7:] = 0
    extrinsic, intrinsic = g.pose_encoding_to_camera(pose_enc, IMAGE_SIZE)
    assert extrinsic.isfinite().all()
    assert not intrinsic.isnan().any()
    infinite = intrinsic.isinf().nonzero().tolist()
    assert infinite == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 1]]
    assert torch.equal(g.camera_to_pose_encoding(extrinsic, intrinsic, IMAGE_SIZE)[0, 1, 7:], torch.zeros(2))
    assert g.unproject_depth(torch.ones(2, 6, 4, 5), extrinsic, intrinsic).isfinite().all()


def test_half_precision_is_computed_in_fp32() -> None:
    pose_enc = GOLDEN["pose_enc"].bfloat16()
    extrinsic, intrinsic = g.pose_encoding_to_camera(pose_enc, IMAGE_SIZE)
    expected = g.pose_encoding_to_camera(pose_enc.float(), IMAGE_SIZE)
    assert torch.equal(extrinsic, expected[0])
    assert torch.equal(intrinsic, expected[1])


def test_autocast_does_not_shorten_the_arithmetic() -> None:
    depth, extrinsic = GOLDEN["unproject_depth"], GOLDEN["unproject_extrinsic"]
    with torch.autocast("cpu", torch.bfloat16):
        points = g.unproject_depth(depth, extrinsic, GOLDEN["unproject_intrinsic"])
    assert relative_error(points, GOLDEN["unproject_points"]) < 1e-6


def test_pose_encoding_compiles_as_one_graph() -> None:
    compiled = torch.compile(g.pose_encoding_to_camera, fullgraph=True, backend="eager")
    for actual, expected in zip(
        compiled(GOLDEN["pose_enc"], IMAGE_SIZE),
        g.pose_encoding_to_camera(GOLDEN["pose_enc"], IMAGE_SIZE),
        strict=True,
    ):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quaternion_round_trip(dtype: torch.dtype) -> None:
    quaternions = random_quaternions(20_000, dtype)
    rotations = g.quaternion_to_rotation(quaternions)
    back = g.rotation_to_quaternion(rotations)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    standard = torch.where(quaternions[:, 3:] < 0, -quaternions, quaternions)
    assert back.dtype == dtype
    assert (back[:, 3] >= 0).all()
    assert (back - standard).abs().max() < tolerance
    identity = torch.eye(3, dtype=dtype)
    assert (rotations @ rotations.mT - identity).abs().max() < 4 * tolerance
    assert (torch.linalg.det(rotations) - 1).abs().max() < 4 * tolerance


@pytest.mark.parametrize("length", [1e-30, 1e-3, 1.0, 1e3, 1e30])
def test_quaternion_length_does_not_matter(length: float) -> None:
    quaternions = random_quaternions(100)
    expected = g.quaternion_to_rotation(quaternions)
    assert (g.quaternion_to_rotation(quaternions * length) - expected).abs().max() < 1e-6


AXES = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, -1], [1, -1, 1], [0.01, 1, 0.02], [-3, 1e-4, 1]]


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("degrees", [0, 1e-3, 90, 119.9, 120.1, 179.9, 180, 180.1, 270])
def test_rotation_to_quaternion_on_every_branch(axis: list[float], degrees: float) -> None:
    rotation = rotation_about(axis, degrees)
    quaternion = g.rotation_to_quaternion(rotation)
    assert quaternion.norm().item() == pytest.approx(1, abs=1e-6)
    assert (g.quaternion_to_rotation(quaternion) - rotation).abs().max() < 1e-6
    half = math.radians(degrees) / 2
    unit_axis = torch.nn.functional.normalize(torch.tensor(axis).float(), dim=0)
    expected = torch.cat([unit_axis * math.sin(half), torch.tensor([math.cos(half)])])
    assert (quaternion * expected).sum().abs().item() == pytest.approx(1, abs=1e-6)


def test_rotation_to_quaternion_has_finite_gradients_at_the_identity() -> None:
    rotation = torch.eye(3).requires_grad_()
    g.rotation_to_quaternion(rotation).sum().backward()
    assert rotation.grad is not None
    assert rotation.grad.isfinite().all()


def test_inverse_composition_and_relative_pose() -> None:
    a, b = random_extrinsics(50, seed=1), random_extrinsics(50, seed=2)
    row = torch.tensor([0.0, 0, 0, 1]).expand(50, 1, 4)
    a4, b4 = torch.cat([a, row], dim=-2).double(), torch.cat([b, row], dim=-2).double()
    assert relative_error(g.invert_extrinsic(a), torch.linalg.inv(a4)[:, :3].float()) < 1e-6
    assert relative_error(g.compose_extrinsics(b, a), (b4 @ a4)[:, :3].float()) < 1e-6
    assert relative_error(g.relative_pose(a, b), (b4 @ torch.linalg.inv(a4))[:, :3].float()) < 1e-6
    at_center = g.transform_points(g.camera_center(a)[:, None], a)
    assert at_center.abs().max() < 1e-5


def test_projection_undoes_unprojection() -> None:
    extrinsic, intrinsic = GOLDEN["unproject_extrinsic"], GOLDEN["unproject_intrinsic"]
    depth = GOLDEN["unproject_depth"].squeeze(-1)
    for pixel_center in (0.0, 0.5):
        points = g.unproject_depth(depth, extrinsic, intrinsic, pixel_center=pixel_center)
        pixels, projected_depth = g.project_points(points.flatten(1, 2), extrinsic, intrinsic)
        v, u = torch.meshgrid(torch.arange(40.0), torch.arange(52.0), indexing="ij")
        grid = torch.stack([u, v], dim=-1).flatten(0, 1) + pixel_center
        assert (pixels - grid).abs().max() < 1e-3
        assert (projected_depth - depth.flatten(1, 2)).abs().max() < 1e-5


@pytest.mark.parametrize("degrees", [0, 1e-3, 0.1, 30, 90, 150, 179.9, 180])
def test_rotation_error(degrees: float) -> None:
    base = rotation_about([3, 1, -2], 77)
    turned = rotation_about([1, 2, 3], degrees) @ base
    tolerance = max(1e-4 * degrees, 3e-5)
    assert g.rotation_error_degrees(base, turned).item() == pytest.approx(degrees, abs=tolerance)


def test_direction_error_ignores_length() -> None:
    x, y = torch.tensor([2.0, 0, 0]), torch.tensor([0.0, 1e-4, 0])
    assert g.direction_error_degrees(x, y).item() == pytest.approx(90)
    assert g.direction_error_degrees(x, -3 * x).item() == pytest.approx(180)
    assert g.direction_error_degrees(x, x).item() == 0
    assert g.direction_error_degrees(x, torch.zeros(3)).item() == 0


def test_centers_are_measured_by_the_extent_of_the_first_set() -> None:
    turned = g.quaternion_to_rotation(torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64))
    centers = torch.tensor([[0.0, 0, 0], [3.0, 4, 0], [0.0, 1, 0]], dtype=torch.float64)
    moved = centers + torch.tensor([[0.0, 0, 1], [0.0, 0, 0], [2.0, 0, 0]], dtype=torch.float64)
    a, b = (torch.cat([turned.expand(3, 3, 3), -(c @ turned.mT)[..., None]], dim=-1) for c in (centers, moved))
    torch.testing.assert_close(g.relative_center_distance(a, b), torch.tensor([0.2, 0.0, 0.4], dtype=torch.float64))
    assert g.relative_center_distance(a[:1], b[:1]).isinf().all()
    assert g.relative_center_distance(a[:1], a[:1]) == 0
