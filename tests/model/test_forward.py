"""`VGGT.forward`: which heads run, chunks, shapes, layers kept, inputs that do not fit."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vggt_int8 import VGGTInt8
from vggt_int8.model import VGGT, VGGTConfig, VGGTOutput

KEYS = {
    "camera": {"pose_enc", "extrinsic", "intrinsic"},
    "depth": {"depth", "depth_conf"},
    "point": {"world_points", "world_points_conf"},
    "track": {"track", "vis", "conf"},
}


@pytest.fixture
def model(make_model: Callable[..., VGGT]) -> VGGT:
    return make_model()


def random_images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def test_output_shapes_keys_and_attributes(model: VGGT) -> None:
    output = model(random_images(3, 3, 42, 70), query_points=torch.tensor([[5.0, 6.0], [30.0, 20.0]]))
    assert isinstance(output, VGGTOutput)
    shapes = {name: tuple(value.shape) for name, value in output.items()}
    assert shapes == {
        "pose_enc": (1, 3, 9),
        "extrinsic": (1, 3, 3, 4),
        "intrinsic": (1, 3, 3, 3),
        "depth": (1, 3, 42, 70, 1),
        "depth_conf": (1, 3, 42, 70),
        "world_points": (1, 3, 42, 70, 3),
        "world_points_conf": (1, 3, 42, 70),
        "images": (1, 3, 3, 42, 70),
        "track": (1, 3, 2, 2),
        "vis": (1, 3, 2),
        "conf": (1, 3, 2),
    }
    assert output.depth is output["depth"]


@pytest.mark.parametrize("heads", [("camera",), ("depth",), ("point",), ("camera", "depth"), ["point", "camera"]])
@torch.inference_mode()
def test_only_the_heads_asked_for_run(model: VGGT, heads: list[str]) -> None:
    images = random_images(2, 3, 28, 42)
    everything = model(images)
    output = model(images, heads=heads)
    assert set(output) == {"images"}.union(*(KEYS[head] for head in heads))
    for name, value in output.items():
        torch.testing.assert_close(value, everything[name])


@torch.inference_mode()
def test_track_head_runs_alone_and_only_with_query_points(model: VGGT) -> None:
    images = random_images(2, 3, 28, 42)
    assert "track" not in model(images)
    assert set(model(images, query_points=torch.ones(1, 2), heads=("track",))) == {"images", *KEYS["track"]}


@pytest.mark.parametrize(("track", "says"), [(False, "has no head"), (True, "has the track head alone: pass query")])
def test_a_model_without_anything_to_run_says_so(tiny_config: VGGTConfig, track: bool, says: str) -> None:
    """As files of trackers, and of an aggregator alone, make them."""
    without = {f"enable_{head}": False for head in ("camera", "depth", "point")} | {"enable_track": track}
    with torch.device("meta"):
        model = VGGT(VGGTConfig(**{**tiny_config.to_dict(), **without}))
    with pytest.raises(ValueError, match=says):
        model(random_images(2, 3, 42, 56))


@pytest.mark.parametrize("head", KEYS)
@torch.inference_mode()
def test_a_disabled_head_has_no_weights_and_no_outputs(tiny_config: VGGTConfig, head: str) -> None:
    config = VGGTConfig(**{**tiny_config.to_dict(), f"enable_{head}": False})
    model = VGGT(config).eval()
    assert getattr(model, f"{head}_head") is None
    assert not any(name.startswith(f"{head}_head") for name in model.state_dict())
    output = model(random_images(2, 3, 28, 42))
    assert not KEYS[head] & set(output)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, None])
@torch.inference_mode()
def test_frame_chunks_do_not_change_the_result(model: VGGT, chunk: int | None) -> None:
    images, points = random_images(2, 5, 3, 28, 42), torch.tensor([[5.0, 6.0], [30.0, 20.0]]).expand(2, 2, 2)
    whole = model(images, query_points=points)
    output = model(images, query_points=points, frames_chunk_size=chunk)
    for name in output.keys() - KEYS["track"]:
        torch.testing.assert_close(output[name], whole[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, None])
@torch.inference_mode()
def test_chunks_of_the_tracker_are_in_its_correlations_alone(model: VGGT, chunk: int | None) -> None:
    """Each of which is a sum of products, right to the error of fp32: what the tracker makes of an error is its own."""
    tracker, generator = model.track_head.tracker, torch.Generator().manual_seed(0)
    channels, size = tracker.channels, (14, 21)
    pyramid = tracker.pyramid(torch.randn(2, 5, channels, *size, generator=generator))
    features = torch.randn(2, 3, 5, channels, generator=generator)
    points = 20 * torch.rand(2, 3, 5, 2, generator=generator)
    got = tracker.correlate(pyramid, features, points, chunk)
    want, of_sizes = (
        tracker.correlate([f(maps) for maps in pyramid], f(features), points, None) for f in (torch.clone, torch.abs)
    )
    # One sum differs from another of the same products by no more than (terms + 4 of the sample) roundings, twice.
    allowed = 2 * (channels + 4) * 2.0**-24 * of_sizes
    assert ((got - want).abs() <= allowed).all()


@torch.inference_mode()
def test_only_the_layers_that_are_read_are_kept(model: VGGT) -> None:
    calls: list[int] = []
    for index, block in enumerate(model.aggregator.global_blocks):
        block.register_forward_hook(lambda *_, index=index: calls.append(index))
    tokens = model.aggregator(random_images(1, 2, 3, 28, 28), layers={0, 2})
    assert set(tokens) == {0, 2}
    assert calls == [0, 1, 2]


def test_training_mode_gives_every_pose_and_gradients(model: VGGT) -> None:
    model.train()
    output = model(random_images(2, 3, 28, 28), query_points=torch.tensor([[5.0, 6.0]]))
    assert len(output.pose_enc_list) == model.config.camera_iterations
    assert output.pose_enc is output.pose_enc_list[-1]
    losses = [value.square().mean() for name, value in output.items() if name not in ("images", "pose_enc_list")]
    sum(losses + [pose.square().mean() for pose in output.pose_enc_list]).backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == ["aggregator.patch_embed.mask_token"]
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_gradient_checkpointing_gives_the_same_gradients(model: VGGT) -> None:
    images = random_images(2, 3, 28, 28)
    model.train()

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(images, heads=("depth",)).depth.sum().backward()
        return [parameter.grad for parameter in model.aggregator.frame_blocks.parameters()]

    plain = gradients()
    model.gradient_checkpointing_enable()
    calls: list[int] = []
    model.aggregator.frame_blocks[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    for actual, expected in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(actual, expected)
    assert len(calls) == 2, "the block ran a second time in the backward pass"


IMAGES = torch.zeros(2, 3, 28, 42)
POINTS = torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("images", "kwargs", "error", "message"),
    [
        (torch.zeros(3, 28, 42), {}, ValueError, r"\[S, 3, H, W\].*got \(3, 28, 42\): .*images\[None\]"),
        (torch.zeros(2, 28, 42, 3), {}, ValueError, r"got \(2, 28, 42, 3\): .*permute\(0, 3, 1, 2\)"),
        (torch.zeros(28, 42, 3), {}, ValueError, r"got \(28, 42, 3\): .*permute\(2, 0, 1\)\[None\]"),
        (torch.zeros(2, 3, 28, 42, dtype=torch.bool), {}, TypeError, r"torch.bool; convert them with \.float\(\)"),
        (torch.zeros(2, 4, 28, 42), {}, ValueError, r"3 color channels.*got \(2, 4, 28, 42\)"),
        (torch.zeros(0, 3, 28, 42), {}, ValueError, r"empty: \(0, 3, 28, 42\)"),
        (IMAGES.to(torch.uint8), {}, TypeError, "torch.uint8; divide 8-bit images by 255"),
        (torch.zeros(2, 3, 30, 45), {}, ValueError, "30 x 45 .* patch size 14.* 28 x 42"),
        (torch.zeros(2, 3, 28, 5), {}, ValueError, "28 x 5 .* 28 x 14"),
        (IMAGES, {"heads": ("camera", "normals")}, ValueError, "unknown head 'normals'; there are camera, depth"),
        (IMAGES, {"heads": "camera"}, ValueError, "heads must be a tuple .*got 'camera'"),
        (IMAGES, {"heads": ()}, ValueError, r"heads must be a tuple .*got \(\)"),
        (IMAGES, {"heads": ("track",)}, ValueError, "go together: got heads .*and no query_points"),
        (IMAGES, {"heads": ("depth",), "query_points": POINTS}, ValueError, "go together: got heads .'depth',"),
        (IMAGES, {"query_points": torch.zeros(4, 3)}, ValueError, r"query_points must be .*got \(4, 3\)"),
        (IMAGES, {"query_points": torch.zeros(2, 4, 2)}, ValueError, r"B = 1 .*got \(2, 4, 2\)"),
        (IMAGES, {"query_points": torch.zeros(0, 2)}, ValueError, r"N > 0, got \(0, 2\)"),
        (torch.zeros(1, 3, 14, 14), {"track_corr_levels": 4, "query_points": POINTS}, ValueError, "at least 16 pixels"),
        (IMAGES, {"frames_chunk_size": 0}, ValueError, "frames_chunk_size must be at least 1.*got 0"),
        (IMAGES, {"enable_track": False, "query_points": POINTS}, ValueError, "this model has none .enable_track"),
        (IMAGES, {"enable_depth": False, "heads": ("depth",)}, ValueError, "no depth head .enable_depth is False"),
    ],
)
def test_inputs_that_do_not_fit_are_named(
    tiny_config: VGGTConfig, images: Tensor, kwargs: dict, error: type[Exception], message: str
) -> None:
    fields = {name: value for name, value in kwargs.items() if hasattr(tiny_config, name)}
    arguments = {name: value for name, value in kwargs.items() if name not in fields}
    with torch.device("meta"):  # inputs are checked before any computation, and by shape alone
        model = VGGT(VGGTConfig(**{**tiny_config.to_dict(), **fields}))
    with pytest.raises(error, match=message):
        model(images.to("meta"), **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images * 255, r"hold values from .* to 25\d.*: divide them by 255"),
        (lambda images: (images - 0.45) / 0.22, "hold values from .*: do not normalise them"),
    ],
)
def test_images_out_of_range_are_told_of_where_that_costs_no_wait(
    model: VGGT, change: Callable[[Tensor], Tensor], message: str
) -> None:
    images = change(random_images(2, 3, 42, 70))
    with pytest.raises(ValueError, match=message):
        model(images, heads=("camera",))
    int8 = VGGTInt8(model.config).eval()
    int8.set_runtime("off")
    assert int8(images, heads=("camera",), check_finite=False).pose_enc is not None
