"""A fused block is the plain block: every kind of linear, with and without RoPE, whole and in parts."""

import pytest
import torch
from torch import Tensor, nn

from tests.codes import apart_by_codes
from vggt_int8.difference import relative_error
from vggt_int8.model.layers import Block
from vggt_int8.model.tables import rope_table
from vggt_int8.quant import Int8Linear
from vggt_int8.runtime.blocks import run_block, run_block_in_parts
from vggt_int8.runtime.token_scales import TokenScales

DIM, HEADS = 32, 2
LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
KINDS = {
    "float": ("float",) * 4,
    "none": ("none",) * 4,
    "dynamic": ("dynamic",) * 4,
    "static": ("static",) * 4,
    "mixed": ("dynamic", "float", "none", "dynamic"),
    "static after dynamic": ("static", "dynamic", "dynamic", "static"),
    "static, special tokens": ("special",) * 4,
    "static, rotated, special tokens": ("special rotated",) * 4,
    "special tokens in some layers": ("dynamic", "special", "static", "special"),
}
SPECIAL = 2
CPU = torch.device("cpu")
ALL_ROWS = 1 << 20


def make_block(kinds: tuple[str, ...], qk_norm: bool) -> Block:
    torch.manual_seed(0)
    block = Block(DIM, HEADS, 4.0, qk_norm=qk_norm).eval().requires_grad_(False)
    for parameter in block.parameters():
        parameter.normal_(std=0.3)
    for name, kind in zip(LAYERS, kinds, strict=True):
        if kind != "float":
            layer, special = block.get_submodule(name), kind.startswith("special")
            way = {"input_scale": 0.05 if kind == "static" else None}
            if special:
                rotation = 256 if "rotated" in kind else 0
                way = {"input_scale": (0.02, 0.06), "special_tokens": SPECIAL, "rotation": rotation}
            block.set_submodule(name, Int8Linear.from_linear(layer, "static" if special else kind, **way))
    return block


def fused(block: Block, x: Tensor, table: Tensor | None = None, rows: int = ALL_ROWS) -> Tensor:
    """The fused block of x [B, N, C], whose sequences are frames."""
    scales = TokenScales([block], x.shape[1])
    return run_block(block, x.flatten(0, 1), len(x), table, rows, scales=scales).view_as(x)


def make_tokens(sequences: int, length: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(100 * seed + length)
    return torch.randn(sequences, length, DIM, generator=generator).to(dtype)


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("rope", [True, False])
@pytest.mark.parametrize(("sequences", "length"), [(1, 1), (3, 17), (2, 41)])
def test_a_fused_block_is_the_block(kinds: tuple[str, ...], rope: bool, sequences: int, length: int) -> None:
    block = make_block(kinds, qk_norm=rope)
    table = rope_table(1, length, 0, DIM // HEADS, 100.0, device=CPU) if rope else None
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    scenes = [make_tokens(sequences, length, seed=seed) for seed in range(1 if kinds[0] in ("float", "none") else 8)]
    errors = [relative_error(fused(block, x, table), block(x, table)) for x in scenes]
    # Codes that lie on a border may round the other way: in up to one scene of three (20,000 codes, of which one in
    # 50,000 is as near to a border as sums of fp32 differ), and there no more is known than what all codes cost.
    assert min(errors) < 1e-6, errors
    if len(scenes) > 1:
        floats = make_block(KINDS["float"], qk_norm=rope)
        apart = apart_by_codes(*(lambda x, b=b: {"block": b(x, table)} for b in (floats, block)), scenes)
        assert max(errors) < apart["block"], errors
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_half_precision_loses_no_more_than_in_the_plain_block(kinds: tuple[str, ...], dtype: torch.dtype) -> None:
    block, x = make_block(kinds, qk_norm=True), make_tokens(3, 17, dtype)
    table = rope_table(1, 17, 0, DIM // HEADS, 100.0, device=CPU)
    exact = block(x.float(), table)
    block = block.to(dtype)
    plain = block(x, table)
    got = fused(block, x, table)
    assert got.dtype == dtype
    assert relative_error(got, exact) < 1.2 * relative_error(plain, exact) + torch.finfo(dtype).eps


@pytest.mark.parametrize("kinds", ["dynamic", "static", "float", "static, special tokens"])
@pytest.mark.parametrize(("rows", "at_once"), [(1, 1), (5, 2), (17, 3), (1000, 1)])
def test_in_parts_it_is_the_same(kinds: str, rows: int, at_once: int) -> None:
    block, x = make_block(KINDS[kinds], qk_norm=True), make_tokens(5, 7).flatten(0, 1)
    table, scales = rope_table(1, 7, 0, DIM // HEADS, 100.0, device=CPU), TokenScales([block], 7)
    whole = run_block(block, x, 5, table, ALL_ROWS, scales=scales)
    kept = x.clone()
    torch.testing.assert_close(run_block_in_parts(block, x, 5, table, rows, at_once, scales=scales), whole)
    assert torch.equal(x, kept), "the input belongs to the caller"
    assert run_block_in_parts(block, x, 5, table, rows, at_once, x, scales) is x
    torch.testing.assert_close(x, whole)


@pytest.mark.parametrize("kinds", [name for name in KINDS if "static" in name or name == "dynamic"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_reach_the_result(kinds: str, value: float) -> None:
    block, x = make_block(KINDS[kinds], qk_norm=False), make_tokens(2, 5)
    x[1, 2, 3] = value
    y = fused(block, x)
    assert not y[1, 2].isfinite().any()
    assert y[0].isfinite().all(), "the other sequence has nothing to do with it"


@pytest.mark.parametrize("kinds", ["static", "static, special tokens", "static, rotated, special tokens"])
def test_static_codes_are_written_by_the_layer_before(kinds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from vggt_int8.runtime import blocks, linear

    block, x, calls = make_block(KINDS[kinds], qk_norm=False), make_tokens(2, 5), []
    quantize_rows, want = linear.ops.quantize_rows, fused(block, x)
    monkeypatch.setattr(linear.ops, "quantize_rows", lambda *a: calls.append(a[0].shape) or quantize_rows(*a))
    fused(block, x)
    assert calls == [(10, DIM)], "of the attention's output alone, not of the hidden activations"
    # Where the kernel that attends writes codes, as on Hopper, these are the ones; rotated ones it cannot write.
    monkeypatch.setattr(blocks, "attention_codes", linear.ops.float_attention_quantize)
    assert relative_error(fused(block, x), want) < 1e-6
    assert calls == [(10, DIM)] * (2 if "rotated" in kinds else 1)


def test_a_linear_without_bias() -> None:
    block = make_block(KINDS["dynamic"], qk_norm=False)
    block.attn.proj = Int8Linear.from_linear(nn.Linear(DIM, DIM, bias=False))
    block.mlp.fc1 = Int8Linear.from_linear(nn.Linear(DIM, 4 * DIM, bias=False), "none")
    x = make_tokens(1, 9)
    assert relative_error(fused(block, x), block(x)) < 5e-3
