"""VGGT-Ω's own parts against arithmetic, and what its forward does with heads, chunks and inputs that do not fit."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vggt_int8 import VGGTOmega, VGGTOmegaConfig
from vggt_int8.difference import relative_error
from vggt_int8.global_attention import GlobalAttention
from vggt_int8.model.omega.constants import KeylessBiasLinear
from vggt_int8.model.omega.layers import apply_axial_rope, axial_rope_table

Make = Callable[..., VGGTOmega]
SIZES = ("img_size", "embed_dim", "encoder_num_heads", "num_heads", "dpt_features", "dpt_out_channels")


@pytest.fixture
def images() -> Tensor:
    """[2, 3, 32, 48]: two different frames."""
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def test_rotary_embeddings_are_rotations_by_the_patch_centre() -> None:
    """Channel i and channel i + D/2 are one complex number, turned by 2 pi times the position over its period."""
    height, width, dim = 2, 5, 16
    x = torch.randn(1, 3, 4 + height * width, dim, generator=torch.Generator().manual_seed(1))
    got = apply_axial_rope(x, axial_rope_table(height, width, dim, device=x.device))
    assert torch.equal(got[:, :, :4], x[:, :, :4]), "tokens without a position"
    pairs = torch.complex(x[..., : dim // 2], x[..., dim // 2 :])
    for row in range(height):
        for column in range(width):
            centre = [(2 * row + 1) / width - 1, (2 * column + 1) / width - 1]  # the longer side is the width
            for channel in range(dim // 2):
                period = 100 ** (channel % (dim // 4) / (dim // 4))
                angle = 2 * math.pi * centre[channel // (dim // 4)] / period
                want = pairs[..., 4 + row * width + column, channel] * complex(math.cos(angle), math.sin(angle))
                at = got[:, :, 4 + row * width + column]
                torch.testing.assert_close(torch.complex(at[..., channel], at[..., channel + dim // 2]), want)


def test_a_bias_of_keys_is_not_there(make_omega: Make, images: Tensor) -> None:
    model = make_omega()
    linears = [module for module in model.modules() if isinstance(module, KeylessBiasLinear)]
    assert len(linears) == 2 + 2 * 5 + 4 + 4
    with torch.no_grad():
        want = model(images)
        x = torch.randn(3, 64)
        linear = linears[0]
        part = linear.bias.clone().view(3, -1)
        part[1] = 0
        torch.testing.assert_close(linear(x), x @ linear.weight.T + part.flatten())
        for linear in linears:
            linear.bias.chunk(3)[1].fill_(float("nan"))
        got = model(images)
    assert all(torch.equal(value, got[name]) for name, value in want.items())


@pytest.mark.parametrize(("layer", "all_tokens"), [(0, True), (1, False)])
def test_patches_pass_a_register_layer_untouched(make_omega: Make, layer: int, all_tokens: bool) -> None:
    aggregator, special = make_omega().aggregator, 17
    tokens = torch.randn(3, special + 6, 64, generator=torch.Generator().manual_seed(2))
    other = tokens.clone()
    other[1, special + 2] += 1
    with torch.no_grad():
        before, after = (aggregator.between_frames(layer, x, 1, GlobalAttention.of(5)) for x in (tokens, other))
    assert torch.equal(before[:, special:], tokens[:, special:]) is not all_tokens
    assert torch.equal(before[:, :special], after[:, :special]) is not all_tokens, "patches are seen"
    assert not torch.equal(before[:, :special], tokens[:, :special])


def test_only_the_heads_asked_for_run(make_omega: Make, images: Tensor) -> None:
    model = make_omega()
    fields = {
        "camera": {"pose_enc", "extrinsic", "intrinsic"},
        "depth": {"depth", "depth_conf"},
        "text": {"text_alignment_embedding", "text_alignment_token"},
    }
    always = {"images", "camera_and_register_tokens"}
    with torch.inference_mode():
        whole = model(images)
        assert set(whole.keys()) == always.union(*fields.values())
        for head, names in fields.items():
            part = model(images, heads=(head,))
            assert set(part.keys()) == always | names
            assert all(torch.equal(value, whole[name]) for name, value in part.items())
        chunked = model(images, heads=("depth",), frames_chunk_size=1)
    assert relative_error(chunked.depth, whole.depth) < 1e-5
    assert relative_error(chunked.depth_conf, whole.depth_conf) < 1e-5


def test_inputs_that_do_not_fit_are_named(make_omega: Make, images: Tensor) -> None:
    model = make_omega()
    for arguments, message in (
        ((images[..., :40],), "multiples of the patch size 16"),
        ((images * 255,), "divide them by 255"),
        ((images, ("track",)), "unknown head 'track'; there are camera, depth, text"),
        ((images, (), 8), "at least one of"),
        ((images, None, 0), "frames_chunk_size must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            model(*arguments)
    model.dense_head = None
    with pytest.raises(ValueError, match="this model has no depth head"):
        model(images, heads=("depth",))


def test_gradients_reach_every_weight_that_is_used(omega_config: VGGTOmegaConfig, images: Tensor) -> None:
    torch.manual_seed(0)
    model = VGGTOmega(omega_config).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("gamma", "_token", "_tokens")):
                parameter.normal_()
    output = model(images)
    heads = (output.pose_enc, output.depth, output.depth_conf, output.text_alignment_embedding)
    sum(value.square().mean() + value.mean() for value in heads).backward()
    missing = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert missing == {"aggregator.patch_embed.mask_token"}
    bias = model.aggregator.frame_blocks[0].attn.qkv.bias.grad.chunk(3)
    assert [bool(part.any()) for part in bias] == [True, False, True]


def test_the_meta_device_is_enough(omega_config: VGGTOmegaConfig) -> None:
    """There, reading a value or mixing in a tensor from the host raises."""
    with torch.device("meta"):
        model = VGGTOmega(omega_config).half().eval()
    with torch.inference_mode():
        output = model(torch.zeros(1, 2, 3, 32, 48, device="meta"))
    assert output.depth.shape == (1, 2, 32, 48, 1)
    assert all(value.dtype == torch.float32 for value in output.values())


@pytest.mark.slow
@torch.inference_mode()
def test_compiles_into_one_graph_for_each_shape(omega_config: VGGTOmegaConfig, images: Tensor) -> None:
    torch._dynamo.reset()
    few = {
        "encoder_depth": 1,
        "depth": 2,
        "register_layers": [1],
        "dpt_layers": [0, 0, 1, 1],
        "enable_text": False,
        "camera_depth": 1,
    }
    model = VGGTOmega(VGGTOmegaConfig(**{name: getattr(omega_config, name) for name in SIZES} | few)).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for inputs in (images, images.mT.contiguous()):
        expected, output = model(inputs), compiled(inputs)
        assert all(relative_error(output[name], value) < 1e-6 for name, value in expected.items())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embed_dim": 1000}, r"embed_dim must be a multiple of 64 \(4 \* encoder_num_heads"),
        ({"patch_size": 14, "img_size": 518}, r"patch_size must be a multiple of 4"),
        ({"register_layers": [24]}, "register_layers must lie in 0 … 23"),
        ({"register_layers": [2, 2]}, "register_layers must name a layer once"),
        ({"dpt_layers": [1, 2, 3]}, "dpt_layers must have 4 entries"),
        ({"img_size": 500}, "img_size must be a multiple of 16"),
        ({"num_register_tokens": 0}, "num_register_tokens must be at least 1"),
        ({"embed_dim": 32768, "depth": 256}, "parameters; VGGT-1B has 1.26e9"),
    ],
)
def test_sizes_that_no_such_network_has(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VGGTOmegaConfig(**fields)


def test_fields_of_another_network() -> None:
    with pytest.raises(TypeError, match="a VGGT-Omega's config has no field 'enable_track'"):
        VGGTOmegaConfig(enable_track=True)
    with pytest.raises(ValueError, match="its model_type is 'vggt', not 'vggt_omega'"):
        VGGTOmegaConfig.from_dict({"model_type": "vggt"})
