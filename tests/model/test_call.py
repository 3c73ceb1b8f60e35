"""`Call`: what is asked of the network, and that nothing runs for what does not fit. The errors: `test_forward.py`."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import Tensor

from vggt_int8.model import VGGT, VGGTConfig
from vggt_int8.model.call import HEADS, Call


@pytest.fixture
def model(tiny_config: VGGTConfig) -> VGGT:
    with torch.device("meta"):
        return VGGT(tiny_config)


def images_of(*shape: int) -> Tensor:
    return torch.zeros(shape, device="meta")


def test_what_was_left_out(model: VGGT) -> None:
    images = images_of(2, 3, 28, 42)
    call = Call.of(model, images)
    assert call.images.shape == (1, 2, 3, 28, 42)
    assert (call.query_points, call.heads, call.frames_chunk_size) == (None, ("camera", "depth", "point"), 8)
    points = torch.zeros(4, 2, dtype=torch.int64, device="meta")
    call = Call.of(model, images, points, frames_chunk_size=None)
    assert (call.query_points.shape, call.query_points.dtype) == ((1, 4, 2), torch.float32)
    assert (call.heads, call.frames_chunk_size) == (HEADS, None)


def test_scenes_of_a_batch_keep_their_tensors(model: VGGT) -> None:
    images, points = images_of(2, 1, 3, 28, 42), torch.zeros(2, 4, 2, device="meta")
    call = Call.of(model, images, points, ["track", "camera"], 3)
    assert call.images is images
    assert call.query_points is points
    assert (call.heads, call.frames_chunk_size) == (("track", "camera"), 3)


@pytest.mark.parametrize("heads", [(head,) for head in HEADS] + [("camera", "depth"), HEADS])
def test_layers_that_the_heads_read(tiny_config: VGGTConfig, heads: tuple[str, ...]) -> None:
    fields = {**tiny_config.to_dict(), "depth": 4, "dpt_layers": [0, 1, 2, 2]}
    with torch.device("meta"):
        model = VGGT(VGGTConfig(**fields))
    points = torch.zeros(1, 2, device="meta") if "track" in heads else None
    expected = ({3} if "camera" in heads else set()) | ({0, 1, 2} if set(heads) != {"camera"} else set())
    assert Call.of(model, images_of(2, 3, 28, 42), points, heads).layers_read == expected


def test_a_call_is_not_changed(model: VGGT) -> None:
    call = Call.of(model, images_of(2, 3, 28, 42))
    with pytest.raises(FrozenInstanceError):
        call.heads = ("depth",)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"images": None}, TypeError, "got None: load_images"),
        ({"heads": ("normals",)}, ValueError, "unknown head 'normals'"),
        ({"query_points": torch.zeros(0, 2)}, ValueError, "N > 0"),
        ({"query_points": [[1, 2]]}, TypeError, r"query_points must be a tensor .*got list"),
        ({"frames_chunk_size": 0}, ValueError, "frames_chunk_size must be at least 1"),
        ({"frames_chunk_size": True}, TypeError, "frames_chunk_size is True; it must be an integer, or None for all"),
        ({"frames_chunk_size": 2.0}, TypeError, "frames_chunk_size is 2.0"),
    ],
)
def test_nothing_runs_for_what_does_not_fit(
    make_model: Callable[..., VGGT], arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    model = make_model()
    model.aggregator.register_forward_pre_hook(lambda *_: pytest.fail("the network ran"))
    with pytest.raises(error, match=message):
        model(**{"images": torch.zeros(2, 3, 28, 42), **arguments})
