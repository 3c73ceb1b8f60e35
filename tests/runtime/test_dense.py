"""The dense heads of the runtime against those of the network."""

import pytest
import torch
from torch import nn

from tests.runtime.conftest import Make
from vggt_int8 import VGGTInt8
from vggt_int8.difference import relative_error
from vggt_int8.model.dpt_head import DPT, add_uv_embedding
from vggt_int8.model.resize import resize
from vggt_int8.runtime import dense
from vggt_int8.runtime.convolution import CONVOLUTIONS, call_conv
from vggt_int8.runtime.kept import Halves

SIZES = ((42, 56), (56, 56), (14, 28), (70, 14))


def make_tokens(model: VGGTInt8, frames: int, size: tuple[int, int], dtype: torch.dtype) -> dict[int, torch.Tensor]:
    config = model.config
    count = 1 + config.num_register_tokens + (size[0] // config.patch_size) * (size[1] // config.patch_size)
    torch.manual_seed(count)
    return {i: torch.randn(1, frames, count, 2 * config.embed_dim).to(dtype) for i in config.dpt_layers}


def halves(tokens: dict[int, torch.Tensor]) -> dict[int, Halves]:
    return {layer: Halves.whole(*x[0].chunk(2, dim=-1)) for layer, x in tokens.items()}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("recipe", ["none", "int8_dynamic"])
def test_a_head_is_the_head(make_quantized: Make, recipe: str, size: tuple[int, int]) -> None:
    model = make_quantized(recipe)
    tokens = make_tokens(model, 3, size, torch.float32)
    for head in (model.depth_head, model.point_head):
        want = head(tokens, size, 8)
        for at_once in (1, 2, 8):
            got = dense.predict(head, halves(tokens), size, at_once, on_host=False)
            for g, w in zip(got, want, strict=True):
                assert g.dtype == torch.float32
                assert g.shape == w[0].shape
                assert relative_error(g, w[0]) < 2e-6
    want = model.track_head.feature_extractor(tokens, size, 8)[0]
    assert relative_error(dense.features(model.track_head.feature_extractor, halves(tokens), size, 2), want) < 2e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loses_no_more_than_in_the_plain_head(make_quantized: Make, dtype: torch.dtype) -> None:
    model = make_quantized("int8_dynamic")
    size = SIZES[0]
    tokens = make_tokens(model, 2, size, dtype)
    exact = model.depth_head({i: x.float() for i, x in tokens.items()}, size, 8)
    model = model.to(dtype)
    plain = model.depth_head(tokens, size, 8)
    got = dense.predict(model.depth_head, halves(tokens), size, 8, on_host=True)
    for g, p, e in zip(got, plain, exact, strict=True):
        assert g.device.type == "cpu"
        assert relative_error(g, e[0]) < 1.3 * relative_error(p, e) + torch.finfo(dtype).eps


def test_the_maps_are_channels_last(make_quantized: Make) -> None:
    model = make_quantized("int8_dynamic")
    call = dense.DenseCall(model.depth_head, halves(make_tokens(model, 2, SIZES[0], torch.float32)), SIZES[0])
    assert call(slice(0, 2)).is_contiguous(memory_format=torch.channels_last)


def test_a_step_is_never_larger_than_the_upsampling_kernel_can_count(make_quantized: Make) -> None:
    model = make_quantized("none")
    call = dense.DenseCall(model.depth_head, halves(make_tokens(model, 3, SIZES[0], torch.float32)), SIZES[0])
    call.image_size = (40000, 2000)
    assert call.parts(8) == [slice(0, 1), slice(1, 2), slice(2, 3)]


def test_every_convolution_of_a_head_runs(make_quantized: Make) -> None:
    """Alone, each equals the layer, plain or with what is fused to it."""
    heads = [make_quantized(recipe).depth_head for recipe in ("none", "int8_dynamic")]
    layers = [m for head in heads for m in head.modules() if isinstance(m, CONVOLUTIONS)]
    assert len(layers) == 64
    for layer in layers:
        x = torch.randn(2, layer.in_channels, 5, 6).to(memory_format=torch.channels_last)
        want = layer(x)
        conv = call_conv(layer, torch.float32)
        z = torch.randn_like(want)
        torch.testing.assert_close(conv(x), want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(conv.relu(x), want.relu(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(conv.add_relu(x, z), (want + z).relu(), rtol=1e-5, atol=1e-5)


def test_a_convolution_that_no_head_has() -> None:
    with pytest.raises(ValueError, match="dilation"):
        call_conv(nn.Conv2d(4, 4, 3, dilation=2), torch.float32)


@pytest.mark.parametrize("size", [(3, 5), (6, 5), (7, 11)])
def test_a_resize_takes_in_what_is_added_to_it(make_quantized: Make, size: tuple[int, int]) -> None:
    model = make_quantized("none")
    call = dense.DenseCall(model.depth_head, halves(make_tokens(model, 2, (42, 70), torch.float32)), (42, 70))
    x, addend = (torch.randn(2, 8, *hw).to(memory_format=torch.channels_last) for hw in ((3, 5), size))
    bias = torch.randn(8)
    want = add_uv_embedding(resize(x, size), (42, 70)) + bias[:, None, None] + addend
    got = call.resize(x, size, embed=True, bias=bias, addend=addend)
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, want)


def test_heads_have_no_module_that_the_runtime_does_not_know(make_quantized: Make) -> None:
    known = (*CONVOLUTIONS, nn.LayerNorm, nn.Identity, nn.ReLU, nn.ModuleList, nn.Sequential)
    for head in (m for m in make_quantized("none").modules() if isinstance(m, DPT)):
        leaves = [m for m in head.modules() if not list(m.children())]
        assert all(isinstance(m, known) for m in leaves)
