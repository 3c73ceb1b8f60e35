"""Every kernel compiles for the kinds of GPU that differ. It needs no GPU, and finds what the interpreter lets pass.

Triton asks its driver which GPU to compile for, so a driver that only answers that is enough.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SLOW, LONG = pytest.mark.slow, pytest.mark.exhaustive
SCRIPT = """
import importlib
import pkgutil
import sys
import threading
from collections import Counter
from unittest.mock import patch
import torch
from triton import JITFunction, knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from vggt_int8.kernels import cuda
from vggt_int8.kernels.cuda import gluon_attention, launch, triton_attention, triton_gemm, triton_norm
from vggt_int8.kernels.cuda import triton_predict, triton_resize, triton_rope, triton_weight_only
from vggt_int8.kernels.cuda.attention_variants import RULES, SMALL, candidates
from vggt_int8.kernels.cuda.tiles import Tile
from vggt_int8.kernels.epilogue import Epilogue

arch = int(sys.argv[1])

class Driver:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", arch, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)
    launcher_cls = staticmethod(lambda src, metadata: launchers.append((src.name, threading.current_thread() is main)))

def codes(*shape):
    return torch.zeros(shape, dtype=torch.int8)

def half(*shape):
    return torch.zeros(shape, dtype=torch.float16)

def gemm(tile, **rest):
    operands = (codes(256, 128), torch.ones(256, 1), codes(256, 128), torch.ones(256, 1))
    triton_gemm.int8_gemm(*operands, Epilogue(half(256), torch.float16, **rest), tile)

def codes_of(tile, **rest):
    operands = (codes(256, 128), torch.ones(256, 1), codes(256, 128), torch.ones(256, 1))
    follows = Epilogue(half(256), torch.float16, True, out_scale=torch.tensor(0.1), **rest)
    triton_gemm.int8_gemm_codes(*operands, follows, tile)

launchers, main = [], threading.main_thread()
driver.set_active(Driver())
compiled = []
warmup = JITFunction.warmup

def keep(kernel, *arguments, **options):
    compiled.append((kernel, warmup(kernel, *arguments, **options)))

triton_gemm.architecture = triton_attention.architecture = lambda device: arch  # of tensors that lie on the CPU
launch._compiled.set({})  # without threads: an error should end this script
with patch.object(JITFunction, "warmup", keep):
    vector, scale = half(64), torch.tensor(0.1)
    triton_norm.quantize_rows(half(8, 64))
    triton_norm.quantize_rows(half(8, 64), scale)
    triton_norm.rotate_rows(half(8, 64), 64)
    triton_norm.layer_norm_quantize(half(8, 64), vector, vector, 1e-5)
    triton_norm.layer_norm_halves(half(2, 4, 32), half(2, 4, 32), 1, vector, vector, 1e-5)
    triton_rope.qk_norm_rope_(half(8, 3, 2, 64), vector, vector, vector, vector, torch.zeros(2, 4, 64), 1e-5)
    triton_resize.resize(half(1, 4, 4, 64), 8, 8)
    triton_resize.resize(half(1, 4, 4, 64), 8, 8, torch.zeros(8, 32), torch.zeros(8, 32), vector, half(1, 8, 8, 64))
    triton_resize.resize(half(1, 4, 4, 64), 4, 4, torch.zeros(4, 32), torch.zeros(4, 32))
    results = torch.zeros(1, 4, 4, 3), torch.zeros(1, 4, 4)
    triton_predict.predict_(half(1, 4, 4, 32), half(4, 32), half(4), True, *results)
    triton_weight_only.dequantize(codes(8, 16, 9), torch.ones(8, 1, 1), torch.float16)
    for rows in (2, 64):
        triton_weight_only.w8a16_linear(half(rows, 2048), codes(512, 2048), torch.ones(512, 1), half(512))
    for k in (2048, 8192):
        triton_weight_only.w8a16_linear(half(1, k), codes(512, k), torch.ones(512, 1), half(512), 256)
    # fp32 takes twice the shared memory, at the camera head's sizes and those of the largest tile in the table.
    for rows in (1, 2, 32, 64):
        triton_weight_only.w8a16_linear(torch.zeros(rows, 2048), codes(512, 2048), torch.ones(512, 1), half(512))
    qkv = codes(10410, 1024), torch.ones(10410, 1), codes(3072, 1024), torch.ones(3072, 1)
    triton_gemm.int8_gemm(*qkv, Epilogue(None, torch.float32))
    tiles = [Tile(64, 64, 64, 4, 3), Tile(64, 64, 64, 4, 3, split_k=2)]
    if arch >= 90:
        tiles = [Tile(64, 64, 64, 4, 3, tma=True, split_k=2)]
        tiles += [Tile(64, 128, 64, 4, 3, tma=True, per_sm=1, parts=parts) for parts in (1, 2)]
    for tile in tiles:  # with all that may follow a product; with nothing above, and codes without a rotation below
        gemm(tile, gelu=True, gamma=half(256), residual=half(256, 256))
    for tile in [t for t in tiles if t.parts == 1]:
        codes_of(tile, rotation=64)
    for rotation in (0, 256):  # at the size that their tiles are measured for
        fc1 = codes(10410, 1024), torch.ones(10410, 1), codes(4096, 1024), torch.ones(4096, 1)
        triton_gemm.int8_gemm_codes(*fc1, Epilogue(None, torch.float16, True, out_scale=scale, rotation=rotation))
    qkv = half(1, 300, 3, 2, 64).permute(2, 0, 3, 1, 4).unbind(0)
    variants = {rule.variant for rule in RULES if arch >= rule.arch}
    variants |= set(candidates(arch)) if "candidates" in sys.argv else set()
    for variant in variants:
        triton_attention.float_attention(*qkv, variant)
    triton_attention.float_attention(*(x.float() for x in qkv), SMALL)
    triton_attention.float_attention_quantize(*qkv, scale)
modules = [importlib.import_module(f"{cuda.__name__}.{found.name}") for found in pkgutil.iter_modules(cuda.__path__)]
kernels = {value for module in modules for value in vars(module).values() if isinstance(value, JITFunction)}
kernels = {kernel for kernel in kernels if kernel.__name__.endswith("_kernel")}
hopper = {triton_gemm._descriptor_kernel, gluon_attention._grouped_attention_kernel}
others = {triton_gemm._pointer_kernel} if arch >= 90 else hopper  # for the other kind of GPU
calls = Counter(kernel for kernel, _ in compiled)
assert set(calls) == kernels - others, [kernel.__name__ for kernel in {*calls} ^ (kernels - others)]
gemm_kernel = ({triton_gemm._pointer_kernel, triton_gemm._descriptor_kernel} - others).pop()
assert calls[gemm_kernel] == 3 + len(tiles) + sum(t.parts == 1 for t in tiles)
assert calls[triton_attention._attention_kernel] == len(variants) + 2
shared = {80: 166912, 90: 232448}[arch]  # bytes a program may have; 86 and 89: 101376
for function, kernel in compiled:
    name = function.__name__
    assert kernel.metadata.shared <= (101376 if name == "_weight_only_kernel" else shared), name
    assert f".target sm_{arch}" in kernel.asm["ptx"]
    if "descriptor" in name or "grouped" in name:
        assert "wgmma.mma_async" in kernel.asm["ptx"], "Hopper's matrix instructions"
        assert "cp.async.bulk.tensor" in kernel.asm["ptx"], "Hopper's copy engine"

launch._compiled.set(None)
compiled = []
knobs.compilation.listener = lambda src, **_: compiled.append((src.name, threading.current_thread() is main))
with launch.compiling():
    for _ in range(3):
        triton_norm.quantize_rows(half(8, 128))
        triton_norm.quantize_rows(half(9, 128), scale)
    assert launch.only_compiling()
assert compiled == [("_quantize_kernel", False)] * 2, "each once, in other threads"
assert launchers == [("_quantize_kernel", False)] * 2, "and what launches them, too"
assert not launch.only_compiling()
launch._compiled.set({})
triton_norm.quantize_rows(half(8, 128))
assert len(compiled) == 2, "and then it is there"
"""


@pytest.mark.parametrize("attention", [pytest.param("chosen", marks=SLOW), pytest.param("candidates", marks=LONG)])
@pytest.mark.parametrize("arch", [pytest.param(80, marks=LONG), 90])  # 86 and 89 take the code of 80
def test_all_kernels_compile(arch: int, attention: str, tmp_path: Path) -> None:
    """With the attention kernel as it is chosen, and as benchmarks/attention.py tries it."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", SCRIPT, str(arch), attention]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-3000:]
