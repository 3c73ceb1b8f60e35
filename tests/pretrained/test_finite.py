"""Outputs are finite, or the call says what is not and which layer made it."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vggt_int8 import VGGTInt8, VGGTOutput
from vggt_int8.pretrained.finite import NonFiniteOutput, check_finite


@pytest.fixture(scope="module")
def loaded(int8_checkpoint: Path) -> VGGTInt8:
    return VGGTInt8.from_pretrained(int8_checkpoint)


@pytest.fixture
def int8(loaded: VGGTInt8) -> VGGTInt8:
    return copy.deepcopy(loaded)


# Where NaN is put -> the outputs that must be named, those that must not, and the layer.
INJECTED = [
    ("aggregator.global_blocks.2.norm1.weight", ["pose_enc", "depth", "world_points", "track"], [],
     r"aggregator\.global_blocks\.2\.norm1 \(LayerNorm\)"),
    ("aggregator.frame_blocks.1.attn.qkv.weight_scale", ["pose_enc", "depth", "world_points", "track"], [],
     r"aggregator\.frame_blocks\.1\.attn\.qkv \(Int8Linear\)"),
    ("camera_head.pose_branch.fc2.bias", ["pose_enc", "extrinsic"], ["depth", "track"],
     r"camera_head\.pose_branch\.fc2 \(Linear\)"),
    ("depth_head.projects.1.weight_scale", ["depth", "depth_conf"], ["pose_enc", "world_points"],
     r"depth_head\.projects\.1 \(Int8Conv2d\)"),
    ("point_head.scratch.output_conv2.2.bias", ["world_points", "world_points_conf"], ["pose_enc", "depth,"],
     r"point_head\.scratch\.output_conv2\.2 \(Conv2d\)"),
    ("track_head.tracker.ffeat_updater.0.bias", ["track", "vis", "conf"], ["depth", "pose_enc"],
     r"track_head\.tracker\.ffeat_updater\.0 \(Int8Linear\)"),
]  # fmt: skip


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("parameter", "named", "not_named", "layer"), INJECTED)
def test_the_first_bad_layer_is_named(
    int8: VGGTInt8,
    tiny_images: Tensor,
    tiny_points: Tensor,
    parameter: str,
    named: list[str],
    not_named: list[str],
    layer: str,
    value: float,
) -> None:
    int8.get_parameter(parameter).data.fill_(value)
    with pytest.raises(NonFiniteOutput, match=rf"NaN or inf in .*; first seen after {layer}") as error:
        int8(tiny_images, query_points=tiny_points)
    outputs = str(error.value).split(" (frames")[0]
    assert all(name in outputs for name in named), outputs
    assert not any(name in outputs for name in not_named), outputs
    assert "frames [0, 1]" in str(error.value)


def test_the_bad_frame_is_named(int8: VGGTInt8, tiny_images: Tensor) -> None:
    images = tiny_images.repeat(3, 1, 1, 1)[:5]

    def spoil(module: torch.nn.Module, args: object, result: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        depth = result[0].clone()
        depth[0, 3, 5, 5] = float("inf")
        return depth, result[1]

    int8.depth_head.register_forward_hook(spoil)
    with pytest.raises(NonFiniteOutput, match=r"NaN or inf in depth \(frames \[3\]\); first seen after the last layer"):
        int8(images)


def test_frames_of_one_process_of_several_have_their_numbers_in_the_scene(int8: VGGTInt8) -> None:
    """The process with frames 3 and 4 of five: maps are of these, poses of all."""
    depth, pose = torch.zeros(1, 2, 4, 4, 1), torch.ones(1, 5, 9)
    depth[0, 1, 2, 2], pose[0, 0, 0] = float("nan"), float("inf")
    output = VGGTOutput(images=torch.zeros(1, 2, 3, 4, 4), pose_enc=pose, depth=depth)
    with pytest.raises(
        NonFiniteOutput, match=r"pose_enc, depth \(frames \[0, 4\]\); first seen after a layer that one GPU"
    ):
        check_finite(int8, output, None, None, first_frame=3)


def test_hooks_are_gone_after_the_search(int8: VGGTInt8, tiny_images: Tensor) -> None:
    weight = int8.get_parameter("aggregator.global_blocks.2.norm1.weight")
    before = weight.data.clone()
    weight.data[0] = float("nan")
    with pytest.raises(NonFiniteOutput):
        int8(tiny_images)
    assert not any(module._forward_hooks for module in int8.modules())
    weight.data.copy_(before)
    assert int8(tiny_images).depth.isfinite().all()


def test_the_check_can_be_left_out(int8: VGGTInt8, tiny_images: Tensor) -> None:
    int8.get_parameter("depth_head.projects.1.weight_scale").data.fill_(float("nan"))
    output = int8(tiny_images, check_finite=False)
    assert output.depth.isnan().any()
    assert output.pose_enc.isfinite().all()
    assert int8(tiny_images, heads=("camera", "point")).world_points.isfinite().all(), "the depth head did not run"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_images(int8: VGGTInt8, tiny_images: Tensor, value: float) -> None:
    images = tiny_images.clone()
    images[1, 2, 7, 7] = value
    with pytest.raises(NonFiniteOutput, match="the input images hold NaN or inf"):
        int8(images)


def test_a_field_of_view_of_zero_is_a_warning(
    make_tiny: Callable[[], VGGTInt8], tiny_images: Tensor, tiny_points: Tensor
) -> None:
    model = make_tiny()
    want = model(tiny_images, query_points=tiny_points)
    model.camera_head.pose_branch.fc2.bias.data[7] = -1e3  # the field of view ends in a ReLU
    with pytest.warns(RuntimeWarning, match=r"frames \[0, 1\] have a field of view of 0: their intrinsic is infinite"):
        got = model(tiny_images, query_points=tiny_points)
    assert (got.pose_enc[..., 7] == 0).all()
    assert got.intrinsic[..., 1, 1].isinf().all()
    for name in ("extrinsic", "depth", "depth_conf", "world_points", "world_points_conf", "track", "vis", "conf"):
        assert got[name].isfinite().all(), name
    for name in ("depth", "world_points", "track"):
        assert torch.equal(got[name], want[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(tiny_images, check_finite=False)
        model(tiny_images, heads=("depth",))


def test_nothing_is_said_when_all_is_well(int8: VGGTInt8, tiny_images: Tensor, tiny_points: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        int8(tiny_images, query_points=tiny_points)
        int8(tiny_images[None].repeat(2, 1, 1, 1, 1))


def test_an_fp16_overflow_is_found(tiny_checkpoint: Path, tiny_images: Tensor) -> None:
    model = VGGTInt8.from_pretrained(tiny_checkpoint, recipe="int8_dynamic", dtype=torch.float16)
    model.get_parameter("aggregator.frame_blocks.0.ls1.gamma").data.fill_(6e4)
    model.get_parameter("aggregator.frame_blocks.0.attn.proj.weight_scale").data.mul_(1e4)
    with pytest.raises(NonFiniteOutput, match=r"aggregator\.frame_blocks\.0\.(attn\.proj|ls1).*dtype=torch\.bfloat16"):
        model(tiny_images)


def test_points_for_a_model_without_a_tracker_are_answered_by_that_alone(int8: VGGTInt8, tiny_images: Tensor) -> None:
    int8.track_head = None
    with pytest.raises(ValueError, match="this model has none"):
        int8(tiny_images, query_points=torch.full((1, 2), -1e6))
