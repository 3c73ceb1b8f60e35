"""The ground truth is exact: geometry between views, scale, determinism, splits."""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from vggt_int8.geometry import project_points, transform_points
from vggt_int8.scenes import SceneBatch, describe_scenes, render, render_scenes, scene_batches, scene_seeds
from vggt_int8.scenes.raycast import CYLINDER, SLOT_KINDS, SPHERE
from vggt_int8.scenes.render import RAYS_PER_PASS
from vggt_int8.scenes.shading import trace_color, trace_depth

SIZE = (56, 70)


@pytest.fixture(scope="module")
def batch() -> SceneBatch:
    return render_scenes(scene_seeds("free", range(24)), 5, SIZE, supersample=1, tracks=64)


def seen_from(batch: SceneBatch, tolerance: float = 0.03) -> tuple[Tensor, Tensor, Tensor]:
    """Every pixel of view i looked up in view j: inside [B, j, i * pixels], seen, occluded."""
    views, (height, width) = batch.depth.shape[1], batch.depth.shape[2:]
    points = batch.world_points.reshape(len(batch.depth), 1, -1, 3).expand(-1, views, -1, -1)
    pixels, depth = project_points(points, batch.extrinsic, batch.intrinsic)
    column, row = pixels.nan_to_num(-1e4).clamp(-1e4, 1e4).round().long().unbind(-1)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (depth > 0.05)
    index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    # Depths of the 3x3 neighbourhood: the point falls between pixel centres.
    padded = torch.nn.functional.pad(batch.depth, (1, 1, 1, 1), mode="replicate")
    patches = padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4).flatten(2, 3)  # [B, S, H * W, 9]
    around = patches.gather(2, index[..., None].expand(-1, -1, -1, 9))
    nearest, farthest = around.amin(-1), around.amax(-1)
    in_range = (depth > nearest * (1 - tolerance)) & (depth < farthest * (1 + tolerance))
    return inside, inside & in_range, inside & (depth >= farthest * (1 + tolerance))


@pytest.mark.slow
def test_fields_and_first_camera(batch: SceneBatch) -> None:
    assert batch.images.shape == (24, 5, 3, *SIZE)
    assert all(getattr(batch, f.name).isfinite().all() for f in dataclasses.fields(batch))
    assert batch.images.min() >= 0
    assert batch.images.max() <= 1
    assert batch.valid.all()
    assert torch.equal(batch.extrinsic[:, 0], torch.eye(3, 4).expand(24, 3, 4))
    rotation = batch.extrinsic[..., :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand_as(rotation), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(24, 5))
    assert (batch.intrinsic[..., :2, 2] == torch.tensor([35.0, 28.0])).all()


def test_scale_is_the_mean_distance_of_all_points(batch: SceneBatch) -> None:
    mean = batch.world_points.norm(dim=-1).mean((1, 2, 3))
    torch.testing.assert_close(mean, torch.ones(24), atol=1e-5, rtol=0)


def test_points_return_to_their_pixels(batch: SceneBatch) -> None:
    """Independent arithmetic in float64, without the package's unprojection."""
    height, width = SIZE
    extrinsic, intrinsic = batch.extrinsic.double(), batch.intrinsic.double()
    camera = torch.einsum("bsij,bshwj->bshwi", extrinsic[..., :3], batch.world_points.double())
    camera = camera + extrinsic[:, :, None, None, :, 3]
    torch.testing.assert_close(camera[..., 2].float(), batch.depth, atol=1e-5, rtol=1e-5)
    image = torch.einsum("bsij,bshwj->bshwi", intrinsic, camera)
    pixel = image[..., :2] / image[..., 2:]
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    assert (pixel - torch.stack([u, v], dim=-1)).abs().max() < 5e-3


def test_pixels_that_are_not_square_see_along_the_same_rays() -> None:
    """40 rows with fx / fy = 1.5 are every three halves of a row of 60 rows of square pixels."""
    seeds = scene_seeds("free", range(6))
    square = render_scenes(seeds, 2, (60, 72), supersample=1)
    flat = render_scenes(seeds, 2, (40, 72), supersample=1, pixel_aspect=(1.5, 1.5))
    metres = [b.depth * b.metres_per_unit[:, None, None, None] for b in (flat, square)]
    torch.testing.assert_close(metres[0][:, :, ::2], metres[1][:, :, ::3], atol=1e-5, rtol=1e-4)
    assert torch.equal(flat.intrinsic[..., 0, 0], square.intrinsic[..., 0, 0])
    torch.testing.assert_close(flat.intrinsic[..., 0, 0] / flat.intrinsic[..., 1, 1], torch.full((6, 2), 1.5))
    assert (flat.intrinsic[..., :2, 2] == torch.tensor([36.0, 20.0])).all()
    v, u = torch.meshgrid(torch.arange(40.0), torch.arange(72.0), indexing="ij")
    pixels, _ = project_points(flat.world_points.flatten(2, 3), flat.extrinsic, flat.intrinsic)
    torch.testing.assert_close(pixels, torch.stack([u, v], -1).flatten(0, 1).expand_as(pixels), atol=5e-3, rtol=0)


def test_a_scenes_pixels_are_drawn_between_two_aspects() -> None:
    scenes = describe_scenes(scene_seeds("free", range(200)), 3, (16, 32), (0.9, 1.2))
    ratio = scenes.intrinsic[..., 0, 0] / scenes.intrinsic[..., 1, 1]
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    assert 0.9 <= ratio.min() < 0.92 < 1.18 < ratio.max() <= 1.2
    for wrong in [(1.2, 0.9), (0.0, 1.0), (1.0, float("inf"))]:
        with pytest.raises(ValueError, match="pixel_aspect must be two positive numbers"):
            describe_scenes(scene_seeds("free", [0]), 3, (16, 32), wrong)


def test_compiled_passes_are_of_one_size_for_frames_of_several_heights(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = set()

    def counted(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*tensors: Tensor) -> Tensor:
            passes.add((function.__name__, *((tuple(t.shape), t.stride()) for t in tensors)))
            return function(*tensors)

        return call

    monkeypatch.setattr(render, "_kernels", lambda compiled: (counted(trace_depth), counted(trace_color)))
    seeds = scene_seeds("free", range(2))
    for height in (16, 24):
        strips = render_scenes(seeds, 2, (height, 32), compiled=True)
        assert len(passes) == 2
        monkeypatch.undo()
        whole = render_scenes(seeds, 2, (height, 32))
        torch.testing.assert_close(strips.images, whole.images, atol=1e-5, rtol=0)
        torch.testing.assert_close(strips.depth, whole.depth)
        monkeypatch.setattr(render, "_kernels", lambda compiled: (counted(trace_depth), counted(trace_color)))


def test_views_agree_on_one_world(batch: SceneBatch) -> None:
    """A point of one view, projected into another, is never in front of the surface seen there: nothing floats."""
    inside, seen, occluded = seen_from(batch)
    contradicted = inside & ~seen & ~occluded
    # What remains are surfaces thinner than a pixel of the other view.
    assert contradicted.sum() < 1e-3 * inside.sum()
    assert occluded.sum() > 0.02 * inside.sum(), "scenes without occlusion would prove nothing"


@pytest.mark.slow
@pytest.mark.parametrize(("frames", "least"), [(2, 0.2), (4, 0.2), (8, 0.3), (24, 0.6)])
def test_every_view_overlaps_with_others(frames: int, least: float) -> None:
    scenes = 48 if frames < 24 else 12
    batch = render_scenes(scene_seeds("free", range(100, 100 + scenes)), frames, (32, 32), supersample=1)
    _, seen, _ = seen_from(batch)
    seen = seen.unflatten(2, (frames, -1)) & ~torch.eye(frames, dtype=torch.bool)[None, :, :, None]
    share = seen.any(1).float().mean(-1)  # [B, S] of each view's pixels
    assert share.min() > least
    assert share.mean() > 0.6


def test_tracks(batch: SceneBatch) -> None:
    assert batch.query_points is not None
    assert batch.tracks is not None
    assert batch.visibility is not None
    torch.testing.assert_close(batch.tracks[:, 0], batch.query_points, atol=5e-3, rtol=0)
    assert batch.visibility[:, 0].all()
    assert 0.3 < batch.visibility[:, 1:].float().mean() < 0.98
    # A visible point is the surface that a depth map shows beside it.
    pixel = batch.tracks.round().long()
    x = pixel[..., 0].clamp(0, SIZE[1] - 1)
    y = pixel[..., 1].clamp(0, SIZE[0] - 1)
    scene = torch.arange(24)[:, None, None]
    view = torch.arange(5)[None, :, None]
    queried = batch.query_points.long()
    points = batch.world_points[scene[:, 0], 0, queried[..., 1], queried[..., 0]]
    depth = transform_points(points[:, None].expand(-1, 5, -1, -1), batch.extrinsic)[..., 2]
    near = (batch.depth[scene, view, y, x] - depth).abs() < 0.1 * depth
    assert near[batch.visibility].float().mean() > 0.97
    outside = (batch.tracks < -0.5).any(-1) | (batch.tracks[..., 0] > SIZE[1]) | (batch.tracks[..., 1] > SIZE[0])
    assert not batch.visibility[outside].any()


@pytest.mark.slow
def test_visibility_is_what_marching_along_the_ray_finds() -> None:
    """500 steps from each camera to each tracked point, asking of each whether it is inside a thing; in float64."""
    frames = 4
    seeds = scene_seeds("free", range(200, 216))
    truth = render_scenes(seeds, frames, SIZE, supersample=1, tracks=48)
    scenes = describe_scenes(seeds, frames, SIZE)
    assert truth.tracks is not None
    assert truth.visibility is not None
    pixel = truth.tracks.double()
    focal, middle = scenes.intrinsic[..., 0, 0].double(), torch.tensor([SIZE[1] / 2, SIZE[0] / 2]).double()
    ray = torch.cat([(pixel - middle) / focal[..., None, None], torch.ones_like(pixel[..., :1])], dim=-1)
    direction = torch.einsum("bsij,bsnj->bsni", scenes.camera[..., :9].unflatten(-1, (3, 3)).double(), ray)
    # The query's depth in metres, from its world point.
    column, row = truth.query_points.long().unbind(-1)  # type: ignore[union-attr]
    points = truth.world_points[torch.arange(len(seeds))[:, None], 0, row, column].double()
    depth = torch.einsum("bsj,bnj->bsn", truth.extrinsic[..., 2, :3].double(), points)
    depth = (depth + truth.extrinsic[..., 2, 3, None]) * truth.metres_per_unit[:, None, None]
    blocked = torch.zeros_like(truth.visibility)
    kinds = torch.tensor(SLOT_KINDS)[:, None]
    matrix, origin = scenes.slots[..., :9].unflatten(-1, (3, 3)).double(), scenes.slots[..., None, 9:].double()
    for share in torch.linspace(0, 0.99, 500, dtype=torch.float64):
        at = direction * (share * depth)[..., None]
        x, y, z = (torch.einsum("bskij,bsnj->bskni", matrix, at) + origin).unbind(-1)  # [B, S, K, N]
        ring, cube = torch.hypot(x, y), torch.maximum(torch.maximum(x.abs(), y.abs()), z.abs())
        size = torch.where(kinds == SPHERE, torch.hypot(ring, z), cube)
        size = torch.where(kinds == CYLINDER, torch.maximum(ring, z.abs()), size)
        blocked |= (size[:, :, 1:] < 1 - 1e-6).any(2)
    inside = ((pixel > -0.5) & (pixel < torch.tensor([SIZE[1], SIZE[0]]) - 0.5)).all(-1) & (depth > 0)
    expected = inside & ~blocked
    # Marching misses what is thinner than a step, and knows a surface to 1 % of its distance only.
    assert (expected == truth.visibility)[inside].float().mean() > 0.985
    assert 0.02 < blocked[inside].float().mean() < 0.6
    assert not truth.visibility[~inside].any()


@pytest.mark.slow
def test_same_seed_same_scene_in_any_company(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = scene_seeds("free", range(4))
    whole = render_scenes(seeds, 3, (20, 24), tracks=5)
    again = render_scenes(seeds, 3, (20, 24), tracks=5)
    alone = render_scenes(seeds[2:3], 3, (20, 24), tracks=5)
    monkeypatch.setitem(RAYS_PER_PASS, "cpu", 100)
    strips = render_scenes(seeds, 3, (20, 24), tracks=5)
    for f in dataclasses.fields(SceneBatch):
        first = getattr(whole, f.name)
        assert torch.equal(first, getattr(again, f.name)), f.name
        torch.testing.assert_close(first[2:3], getattr(alone, f.name), atol=1e-5, rtol=1e-5)
        # Strips change vector widths, so a ray on an edge may fall to the other side.
        same = (first.float() - getattr(strips, f.name).float()).abs() < 1e-4
        assert same.float().mean() > 0.999, f.name


def test_batches_hold_the_first_scenes_of_a_split() -> None:
    batches = list(scene_batches("held_out", 5, 3, (16, 16), frames_per_batch=7, supersample=1))
    assert [len(batch.images) for batch in batches] == [2, 2, 1]
    whole = render_scenes(scene_seeds("held_out", range(5)), 3, (16, 16), supersample=1)
    together = torch.cat([batch.depth for batch in batches])
    assert ((together - whole.depth).abs() < 1e-4).float().mean() > 0.999


def test_more_views_show_the_same_room() -> None:
    few, many = (render_scenes(scene_seeds("free", [7]), frames, (24, 24), supersample=1) for frames in (2, 24))
    assert not torch.equal(few.images[:, 0], many.images[:, 0])
    assert (few.images.shape[1], many.images.shape[1]) == (2, 24)
    assert (few.images.flatten(3).mean(-1).mean(1) - many.images.flatten(3).mean(-1).mean(1)).abs().max() < 0.15


def test_textures_differ_between_scenes_and_within_a_picture(batch: SceneBatch) -> None:
    detail = batch.images.diff(dim=-1).abs().mean((1, 2, 3, 4))
    assert detail.min() > 0.005, "a picture without texture cannot be matched"
    means = batch.images[:, 0].flatten(1)
    distance = torch.cdist(means, means) + 1e3 * torch.eye(len(means))
    assert distance.min() > 5


def test_splits_never_share_a_seed() -> None:
    seeds = [set(scene_seeds(split, range(1000)).tolist()) for split in ("free", "train", "held_out", "demo")]
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(seeds, 2))
    first, second = (render_scenes(scene_seeds(split, [5]), 2, (16, 16)) for split in ("train", "held_out"))
    assert not torch.equal(first.depth, second.depth)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scene_seeds("test", [0]), "unknown split 'test'"),
        (lambda: scene_seeds("train", [-1]), "scene index -1"),
        (lambda: scene_seeds("train", [1 << 48]), "scene index 281474976710656"),
        (lambda: render_scenes([], 2), "at least one integer"),
        (lambda: render_scenes([1, True], 2), "integers of 64 bits, got True"),
        (lambda: render_scenes(torch.tensor([True]), 2), "integers of 64 bits, got torch.bool"),
        (lambda: next(scene_batches("free", 1, 0, (8, 8))), "frames=0"),
        (lambda: render_scenes([1], 0), "frames=0"),
        (lambda: render_scenes([1], 2, (0, 8)), r"size \(0, 8\)"),
    ],
)
def test_bad_requests_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("wrong", [True, 2.0, "2", None])
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda wrong: scene_seeds("free", [0, wrong]), "a scene index is {}"),
        (lambda wrong: render_scenes([1], wrong), "frames is {}"),
        (lambda wrong: render_scenes([1], 2, (wrong, 8)), "height is {}"),
        (lambda wrong: render_scenes([1], 2, (8, wrong)), "width is {}"),
        (lambda wrong: render_scenes([1], 2, (8, 8), supersample=wrong), "supersample is {}"),
        (lambda wrong: render_scenes([1], 2, (8, 8), tracks=wrong), "tracks is {}"),
        (lambda wrong: next(scene_batches("free", wrong, 2, (8, 8))), "scenes is {}"),
        (lambda wrong: next(scene_batches("free", 1, wrong, (8, 8))), "frames is {}"),
        (lambda wrong: next(scene_batches("free", 1, 2, (8, 8), frames_per_batch=wrong)), "frames_per_batch is {}"),
    ],
)
def test_numbers_that_are_no_integers_are_named(call, message: str, wrong: object) -> None:
    with pytest.raises(TypeError, match=message.format(repr(wrong)) + "; it must be an integer"):
        call(wrong)


def test_integers_of_numpy_and_tensors_are_integers() -> None:
    expected = scene_seeds("demo", [3, 4])
    assert torch.equal(scene_seeds("demo", np.array([3, 4])), expected)
    assert torch.equal(scene_seeds("demo", torch.tensor([3, 4])), expected)
    assert torch.equal(
        render_scenes([np.int64(5)], np.int32(1), (8, 8)).depth, render_scenes(torch.tensor([5]), 1, (8, 8)).depth
    )


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_gpu_renders_the_same_scene(compiled: bool) -> None:
    seeds = scene_seeds("free", range(8))
    cpu = render_scenes(seeds, 4, (56, 56))
    gpu = render_scenes(seeds, 4, (56, 56), device="cuda", compiled=compiled).to("cpu")
    torch.testing.assert_close(cpu.intrinsic, gpu.intrinsic)
    torch.testing.assert_close(cpu.extrinsic, gpu.extrinsic, atol=1e-4, rtol=1e-4)
    assert ((cpu.depth - gpu.depth).abs() < 1e-3).float().mean() > 0.998
    assert (cpu.images - gpu.images).abs().mean() < 2e-3
