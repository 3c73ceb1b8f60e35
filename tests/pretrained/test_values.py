"""What a call is given: the range of images, query points, kinds and devices, named for what they are."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vggt_int8 import VGGT, VGGTInt8, compare_model_outputs, estimate_model_size
from vggt_int8.difference import relative_error
from vggt_int8.pretrained import finite
from vggt_int8.pretrained.finite import NonFiniteOutput
from vggt_int8.runtime import Runtime

MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


@pytest.fixture(scope="module")
def int8(int8_checkpoint: Path) -> VGGTInt8:
    return VGGTInt8.from_pretrained(int8_checkpoint)


OUT_OF_RANGE = [
    pytest.param(lambda x: x * 255, r"hold values from 0\.\d+ to 25\d.*: divide them by 255", id="bytes"),
    pytest.param(lambda x: (x * 255).half(), "divide them by 255", id="bytes in half"),
    pytest.param(lambda x: x * 65535, "scale them", id="16 bits"),
    pytest.param(lambda x: (x - MEAN) / STD, r"values from -2\.\d+ to 2\.\d+: do not normalise", id="ImageNet"),
    pytest.param(lambda x: x * 2 - 1, r"values from -0\.9\d+ to 0\.9\d+: do not normalise", id="from -1"),
]


@pytest.mark.parametrize("runtime", ["auto", "off"])
@pytest.mark.parametrize(("change", "message"), OUT_OF_RANGE)
def test_images_that_are_not_in_range(
    int8: VGGTInt8, tiny_images: Tensor, change: Callable[[Tensor], Tensor], message: str, runtime: Any
) -> None:
    int8.set_runtime(runtime)
    with pytest.raises(ValueError, match=rf"images must lie in \[0, 1\], but .*{message}"):
        int8(change(tiny_images))
    int8(change(tiny_images).clamp(-1e3, 1e3), heads=("camera",), check_finite=False)


@pytest.mark.parametrize("runtime", ["auto", "off"])
def test_query_points_without_a_track_head(int8_checkpoint: Path, tiny_images: Tensor, runtime: Any) -> None:
    # Its config says how many levels a track head would need, and small images have too few pixels for those.
    model = VGGTInt8.from_pretrained(int8_checkpoint, enable_track=False, track_corr_levels=7)
    model.set_runtime(runtime)
    with pytest.raises(ValueError, match=r"this model has none \(enable_track is False"):
        model(tiny_images, query_points=torch.tensor([[3.0, 4.0]]))
    with pytest.raises(ValueError, match="unknown head 'tracks'"):
        model(tiny_images, heads=("tracks",))


def test_what_resizing_makes_of_images_passes(int8: VGGTInt8) -> None:
    stripes = (torch.arange(30) % 2).float().expand(2, 3, 30, 30)
    images = F.interpolate(stripes * stripes.mT, (42, 56), mode="bicubic")
    assert images.min() < -0.05
    assert images.max() > 1.05
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        int8(images, heads=("camera",))
        int8(torch.zeros(1, 3, 42, 56), heads=("depth",))


def test_nothing_is_computed_for_images_out_of_range(
    monkeypatch: pytest.MonkeyPatch, int8: VGGTInt8, tiny_images: Tensor
) -> None:
    monkeypatch.setattr(Runtime, "run", lambda *_: pytest.fail("the network ran"))
    with pytest.raises(ValueError, match="divide them by 255"):
        int8(tiny_images * 255)
    with pytest.raises(NonFiniteOutput, match="the input images hold NaN or inf"):
        int8(tiny_images.where(tiny_images > 0.5, torch.nan))


class OneLook(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts how often a value leaves the device, as on a GPU each would be a wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.looks += func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.is_nonzero)
        return func(*args, **(kwargs or {}))


class OnGpu:
    """Images that say that they are on a GPU, for the half of the check that runs there."""

    device = torch.device("cuda")

    def __init__(self, images: Tensor) -> None:
        self._images, self.shape = images, images.shape

    def detach(self) -> Tensor:
        return self._images


@pytest.mark.parametrize(
    ("images", "points", "message"),
    [
        (lambda x: x, [[3.0, 4.0]], None),
        (lambda x: x * 255, [[3.0, 4.0]], "divide them by 255"),
        (lambda x: x, [[3.0, 4.0], [57.0, 4.0]], r"1 of 2 query_points .* point 1, \(x, y\) = \(57, 4\)"),
        (lambda x: x, [[3.0, float("nan")]], "not a number"),
    ],
)
def test_on_a_gpu_all_is_asked_in_one_look(
    int8: VGGTInt8, tiny_images: Tensor, images: Any, points: list[list[float]], message: str | None
) -> None:
    output = int8(tiny_images, check_finite=False)
    output.images = OnGpu(images(tiny_images))
    query_points = torch.tensor(points)
    with OneLook() as control:
        assert bool(query_points.isreal().all())
    assert control.looks == 1
    with OneLook() as one_look:
        if message is None:
            finite.check_finite(int8, output, query_points, lambda: None)
            assert one_look.looks == 0, "tolist() of one tensor is the only transfer"
        else:
            with pytest.raises(ValueError, match=message):
                finite.check_finite(int8, output, query_points, lambda: None)


POINTS = [
    (
        [[3.0, 4.0], [56.5, 4.0]],
        ValueError,
        r"1 of 2 .*: point 1, \(x, y\) = \(56.5, 4\), is outside .* 56 x 42 pixels",
    ),
    ([[-1.0, 4.0]], ValueError, r"\(-1, 4\), is outside"),
    ([[3.0, float("inf")]], ValueError, "outside"),
    ([[float("nan"), 4.0]], ValueError, "not a number"),
    ([[True, False]], TypeError, "pixels .* got torch.bool"),
    ([[1j, 0]], TypeError, "got torch.complex64"),
]


@pytest.mark.parametrize(("points", "error", "message"), POINTS)
def test_query_points_are_named(
    int8: VGGTInt8, tiny_images: Tensor, points: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        int8(tiny_images, query_points=torch.tensor(points))


def test_query_points_of_another_kind_or_device(int8: VGGTInt8, tiny_images: Tensor) -> None:
    with pytest.raises(TypeError, match=r"query_points must be a tensor \[N, 2\] or \[B, N, 2\], got list"):
        int8(tiny_images, query_points=[[3.0, 4.0]])
    with pytest.raises(TypeError, match="got ndarray"):
        int8(tiny_images, query_points=np.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"query_points are on meta, but the images are on cpu: use query_points.to"):
        int8(tiny_images, query_points=torch.zeros(1, 2, device="meta"))
    whole = int8(tiny_images, query_points=torch.tensor([[3, 4]])).track
    assert torch.equal(whole, int8(tiny_images, query_points=torch.tensor([[3.0, 4.0]])).track)
    int8(tiny_images, query_points=torch.tensor([[0.0, 0.0], [56.0, 42.0], [-0.5, 41.5]]))


NO_TENSORS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "an array": (lambda x: x.numpy(), r"numpy.ndarray \[2, 3, 42, 56\] of float32: use torch.from_numpy"),
    "a list": (list, "a list of 2 tensors: use torch.stack"),
    "arrays": (lambda x: [x[0].numpy()], r"a list of 1, the first being numpy.ndarray .*torch.from_numpy"),
    "nothing": (lambda x: None, "None: load_images"),
    "a name": (lambda x: "room/0.jpg", "str 'room/0.jpg': load_images"),
    "a path": (lambda x: Path("room"), "load_images"),
    "a picture": (lambda x: Image.new("RGB", (56, 42)), r"PIL.Image.Image: .*load_images"),
    "pictures": (lambda x: [Image.new("RGB", (56, 42))], "PIL.Image.Image"),
    "a number": (lambda x: 3, "got int"),
    "an empty list": (lambda x: [], "got list"),
    "sparse": (lambda x: x.to_sparse(), r"a tensor of layout torch.sparse_coo: use .to_dense\(\)"),
    "quantized": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8), r"use .dequantize\(\)"),
    "nested": (lambda x: torch.nested.nested_tensor(list(x)), "nested"),
    "bytes": (lambda x: (x * 255).byte(), "got torch.uint8; divide 8-bit images by 255"),
    "complex": (lambda x: x + 0j, "got torch.complex64; convert them"),
    "float8": (lambda x: x.to(torch.float8_e4m3fn), "got torch.float8_e4m3fn; convert them"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("case", NO_TENSORS)
def test_what_is_no_tensor_of_floats_is_named(int8: VGGTInt8, tiny_images: Tensor, case: str) -> None:
    make, message = NO_TENSORS[case]
    images = make(tiny_images)
    for call in (int8, Runtime(int8), lambda x: VGGT.forward(int8, x)):
        with pytest.raises(TypeError, match=rf"images must be .*{message}"):
            call(images)
    if not isinstance(images, Tensor) or images.layout != torch.strided:
        with pytest.raises(TypeError, match=rf"images must be .*{message}"):
            compare_model_outputs(int8, int8, images)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_images_of_other_floats(int8: VGGTInt8, tiny_images: Tensor, dtype: torch.dtype) -> None:
    output, want = int8(tiny_images.to(dtype)), int8(tiny_images.to(dtype).float())
    assert output.images.dtype == dtype
    assert output.depth.dtype == torch.float32
    assert relative_error(output.depth, want.depth) < 1e-2


def test_images_on_another_device(int8: VGGTInt8, monkeypatch: pytest.MonkeyPatch, tiny_images: Tensor) -> None:
    token = type("Token", (), {"device": torch.device("cuda", 0)})()
    monkeypatch.setitem(int8.aggregator._parameters, "camera_token", token)
    with pytest.raises(ValueError, match=r"images are on cpu, but the model is on cuda:0: .*images.to\(model.device\)"):
        int8(tiny_images)


@pytest.mark.parametrize("value", [None, torch.zeros(3), "model", nn.Linear])
def test_what_is_no_model_is_named(int8: VGGTInt8, tiny_images: Tensor, value: Any) -> None:
    with pytest.raises(TypeError, match=r"takes a torch.nn.Module, not a"):
        estimate_model_size(value)
    for pair in ((value, int8), (int8, value)):
        with pytest.raises(TypeError, match=r"(reference|other) must be a torch.nn.Module, not a"):
            compare_model_outputs(*pair, tiny_images)
