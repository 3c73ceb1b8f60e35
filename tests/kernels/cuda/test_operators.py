"""Triton kernels as operators: tensors of more than 2^31 elements, `torch.compile`, CUDA graphs."""

import torch
from torch import Tensor

from tests.kernels.cuda.cases import DEVICE, TILES, assert_same, assert_same_codes, codes, has_descriptors, on_gpu, rand
from vggt_int8.kernels import reference
from vggt_int8.kernels.cuda import triton_gemm, triton_norm, triton_resize
from vggt_int8.kernels.epilogue import Epilogue


@on_gpu
def test_more_than_2_to_the_31_elements() -> None:
    """The last rows lie behind 2^31 elements: 32-bit offsets would read and write elsewhere."""
    m, k, n = 2**21 + 3, 1024, 16
    x = torch.empty(m, k, device=DEVICE, dtype=torch.float16).normal_()
    got, scale = triton_norm.quantize_rows(x)
    want, want_scale = reference.quantize_rows(x[-5:])
    assert_same_codes((got[-5:], scale[-5:]), (want, want_scale))
    del x
    weight, weight_scale = codes(n, k), torch.rand(n, 1, device=DEVICE)
    operands = (weight, weight_scale, Epilogue(None, torch.float16))
    for tile in TILES[:1] + TILES[2:3] * has_descriptors():
        y = triton_gemm.int8_gemm(got, scale * 1e-3, *operands, tile)
        assert_same(y[-5:], reference.int8_gemm(got[-5:], scale[-5:] * 1e-3, *operands))


@on_gpu
def test_a_resize_to_more_than_2_to_the_31_elements() -> None:
    x = rand(84, 4, 5, 128, dtype=torch.float16)
    rows, columns = rand(392, 64), rand(518, 64)
    got = triton_resize.resize(x, 392, 518, columns, rows)
    assert got.numel() > 2**31
    want = reference.resize(x[-1:], 392, 518, columns, rows)
    torch.testing.assert_close(got[-1:], want, rtol=1e-3, atol=1e-3)


@on_gpu
def test_operators_under_compile_and_in_a_graph() -> None:
    from torch.library import opcheck

    from vggt_int8.kernels import ops

    x, weight, bias = rand(1041, 1024).half(), rand(1024).half(), rand(1024).half()
    w_codes, w_scale = codes(3072, 1024), torch.rand(3072, 1, device=DEVICE) * 1e-3
    opcheck(ops.quantize_rows.op, (x,))
    opcheck(ops.layer_norm_quantize.op, (x, weight, bias, 1e-5))
    opcheck(ops.int8_gemm.op, (*reference.quantize_rows(x), w_codes, w_scale, None, torch.float16))
    opcheck(ops.int8_gemm_quantize.op, (*reference.quantize_rows(x), w_codes, w_scale, None, torch.float16, True))
    static = torch.rand(347, 1, device=DEVICE), 256
    opcheck(
        ops.int8_gemm_quantize.op,
        (*reference.quantize_rows(x), w_codes, w_scale, None, torch.float16, True, None, None, *static),
    )
    opcheck(ops.w8a16_linear.op, (x[:5], w_codes, w_scale, None))
    opcheck(ops.resize.op, (rand(2, 4, 5, 8).half(), 8, 10, rand(10, 4), rand(8, 4), None, rand(2, 8, 10, 8).half()))
    opcheck(ops.predict_.op, (rand(1, 4, 5, 32).half(), rand(2, 32), None, True, rand(1, 4, 5, 1), rand(1, 4, 5)))
    opcheck(ops.layer_norm_halves.op, (rand(2, 4, 8), rand(2, 4, 8), 1, rand(16), rand(16), 1e-5))
    opcheck(ops.dequantize.op, (codes(8, 16, 9), torch.rand(8, 1, 1, device=DEVICE), torch.float16))
    out = rand(1041, 3072).half()
    opcheck(ops.int8_gemm_into_.op, (out, *reference.quantize_rows(x), w_codes, w_scale, None, torch.float16))

    def run(x: Tensor) -> Tensor:
        x_codes, x_scale = ops.layer_norm_quantize(x, weight, bias, 1e-5)
        return ops.int8_gemm(x_codes, x_scale, w_codes, w_scale, Epilogue(None, torch.float16, gelu=True))

    want = run(x)
    assert torch.equal(torch.compile(run, fullgraph=True)(x), want)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(x)
    out.fill_(float("nan"))
    graph.replay()
    assert torch.equal(out, want)
