"""The compiled CPU kernels against the reference: integer parts bit for bit, floats within their rounding."""

import multiprocessing
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from tests.kernels.compiled import LIBRARIES, crossed, use, walled
from tests.kernels.test_cpu import SHAPES, codes, exact, hard_rows, static_scales_of, ways_to_static_codes
from tests.kernels.test_cpu import test_static_codes_pass_nan_on_through_the_scale_of_their_row as nan_in_a_row
from tests.warm import python
from vggt_int8.difference import relative_error
from vggt_int8.kernels import reference
from vggt_int8.kernels.cpu import compiled, compiler, matmul
from vggt_int8.kernels.cpu import ops as cpu_ops
from vggt_int8.kernels.epilogue import Epilogue
from vggt_int8.recipe import Scheme


@pytest.fixture
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> compiled.Library:
    found = use(request.param, monkeypatch)
    monkeypatch.setattr(matmul, "cpu_int8_kernel", lambda: found.name)
    return found


every_library = pytest.mark.parametrize("library", LIBRARIES, indirect=True)
MORE_SHAPES = [*SHAPES, (300, 68, 200), (97, 130, 129), (8, 192, 1153)]


def close(got: torch.Tensor, want: torch.Tensor, limit: float = 1e-6) -> None:
    assert relative_error(got, want) <= limit


@pytest.mark.parametrize(("library", "shape", "threads"), crossed(MORE_SHAPES, [1, 3]), indirect=["library"])
def test_integer_product_is_exact(library: compiled.Library, shape: tuple[int, int, int], threads: int) -> None:
    m, k, n = shape
    x, weight = codes(m, k), codes(n, k, seed=2)
    x[: m // 2] = 127
    weight[: n // 2] = -127
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(matmul.int8_matmul(x, weight), reference.int8_matmul(x, weight))
    finally:
        torch.set_num_threads(before)


@every_library
@pytest.mark.parametrize("ending", ["plain", "bias", "gelu", "residual", "gelu, residual"])
def test_gemm_is_the_reference(library: compiled.Library, ending: str) -> None:
    """Bit for bit but for GELU, whose erf is another one."""
    for m, k, n in MORE_SHAPES:
        generator = torch.Generator().manual_seed(m)
        operands = (*reference.quantize_rows(hard_rows(m, k)), codes(n, k, seed=3))
        scale = torch.rand(n, 1, generator=generator) * 0.01
        bias = None if ending == "plain" else torch.linspace(-3, 3, n).half()
        residual = torch.randn(m, n, generator=generator) if "residual" in ending else None
        gamma = torch.rand(n, generator=generator) if "residual" in ending else None
        arguments = (*operands, scale, Epilogue(bias, torch.float32, "gelu" in ending, gamma, residual))
        want, got = reference.int8_gemm(*arguments), cpu_ops.int8_gemm(*arguments)
        if "gelu" in ending:
            close(got, want)
        if ending == "gelu":
            exact(cpu_ops.int8_gemm_quantize(*arguments), reference.quantize_rows(got))
            if rotation := Scheme(rotation=256).rotation_of(n):
                rotated = (*arguments[:-1], arguments[-1]._replace(rotation=rotation))
                exact(cpu_ops.int8_gemm_quantize(*rotated), reference.quantize_rows(got, rotation=rotation))
        if "gelu" not in ending:
            exact((got,), (want,))
        if ending in ("plain", "bias"):
            for way in ({}, *ways_to_static_codes(m, n)):
                follows = (*arguments[:-1], arguments[-1]._replace(**way))
                exact(cpu_ops.int8_gemm_quantize(*follows), reference.int8_gemm_quantize(*follows))
        if residual is not None:  # which the result may be written over
            cpu_ops.int8_gemm_into_(residual, *arguments)
            exact((residual,), (got,))


@every_library
def test_static_codes_pass_nan_on_through_the_scale_of_their_row(library: compiled.Library) -> None:
    nan_in_a_row()


@pytest.mark.parametrize(
    ("library", "static", "most"), crossed(["", "one", "take turns", "for each row"], [0, 4, 256]), indirect=["library"]
)
def test_codes(library: compiled.Library, static: str, most: int) -> None:
    for m, k, _ in [*SHAPES, (5, 1536, 0)]:
        input_scale = static_scales_of(m)[static] if static else None
        rotation = Scheme(rotation=most).rotation_of(k)
        x, (weight, bias) = walled(hard_rows(m, k)), torch.randn(2, k, generator=torch.Generator().manual_seed(9))
        way = (input_scale, rotation)
        exact(cpu_ops.quantize_rows(x, *way), reference.quantize_rows(x, *way))
        if rotation:
            for alone in (False, True):
                assert torch.equal(cpu_ops.rotate_rows(x, rotation, alone), reference.rotate_rows(x, rotation))
        got = cpu_ops.layer_norm_quantize(x, weight, bias, 1e-5, *way)
        want = reference.layer_norm_quantize(x, weight, bias, 1e-5, *way)
        torch.testing.assert_close(got[1], want[1], rtol=2e-6, atol=0)
        assert (got[0].int() - want[0].int()).abs().amax(dim=1).le(1).all()  # a value on the border of two codes
        assert (got[0] != want[0]).sum() <= 1e-3 * want[0].numel() + 1


@every_library
def test_division_by_any_scale_rounds_as_division(library: compiled.Library) -> None:
    """Scales with fractions of all ones, tiny and huge ones; quotients at the border between two codes."""
    generator = torch.Generator().manual_seed(4)
    scales = torch.rand(4000, 1, generator=generator) + 0.5
    bits = scales.view(torch.int32)
    bits[::3] = (bits[::3] & ~0xFF) | 0xFF
    bits[::7] = (bits[::7] & ~0x7FFFFF) | 0x7FFFFF
    scales[::5] *= 2.0**-100
    scales[1::5] *= 2.0**100
    halves = torch.randint(-127, 127, (4000, 64), generator=generator) + 0.5
    x = halves * scales * (1 + torch.randint(-2, 3, halves.shape, generator=generator) * 2.0**-23)
    x[:, 0] = 127 * scales[:, 0]
    exact(cpu_ops.quantize_rows(x), reference.quantize_rows(x))
    x, scale = torch.tensor([[1e37, -1e37, 1.0, 0.0], [3e38, -3e38, -0.25, 1e-38]]), torch.tensor([0.02])
    exact(cpu_ops.quantize_rows(x, scale), reference.quantize_rows(x, scale))  # quotients beyond fp32


@every_library
def test_passes_over_floats(library: compiled.Library) -> None:
    generator = torch.Generator().manual_seed(0)
    for frames, tokens, dim in ((3, 37, 16), (1, 9, 64), (2, 5, 12)):
        qkv = torch.randn(frames * tokens, 3, 2, dim, generator=generator)
        norms = [walled(torch.randn(dim, generator=generator)) for _ in range(4)]
        qkv, rope = walled(qkv), walled(torch.randn(2, tokens, dim, generator=generator))
        want = reference.qk_norm_rope(qkv, *norms, rope, 1e-5)
        cpu_ops.qk_norm_rope_(qkv, *norms, rope, 1e-5)
        close(qkv, want)
        assert torch.equal(qkv[:, 2], want[:, 2])
        for given in (norms, [None] * 4):
            want = reference.qk_norm_rope(qkv, *given, rope, 1e-5, rotate_half=True)
            cpu_ops.qk_norm_rope_(qkv, *given, rope, 1e-5, rotate_half=True)
            close(qkv, want)
        for count in (1, 2):
            x = walled(torch.randn(frames * tokens, count, 2, dim, generator=generator))
            want = reference.norm_rope(x, *norms[:2], rope, 1e-5)
            cpu_ops.norm_rope_(x, *norms[:2], rope, 1e-5)
            close(x, want)
            assert torch.equal(x[:, 1:], want[:, 1:])
    halves = walled(torch.randn(2, 2, 7, 37, generator=generator))
    norm = walled(torch.randn(2, 74, generator=generator))
    close(cpu_ops.layer_norm_halves(*halves, 3, *norm, 1e-5), reference.layer_norm_halves(*halves, 3, *norm, 1e-5))
    x = walled(torch.randn(2, 5, 8, 6, generator=generator))
    kept = x.clone()
    for size in ((5, 8), (7, 9), (3, 1), (1, 20)):
        columns, rows = walled(torch.rand(size[1], 3)), walled(torch.rand(size[0], 3))
        added = (columns, rows, torch.randn(6).half(), walled(torch.randn(2, *size, 6)))
        for extra in ((), added):
            close(cpu_ops.resize(x, *size, *extra), reference.resize(x, *size, *extra))
    assert torch.equal(x, kept)


@pytest.mark.parametrize(("library", "outputs", "inverse_log"), crossed([2, 4, 9], [False, True]), indirect=["library"])
def test_predictions(library: compiled.Library, outputs: int, inverse_log: bool) -> None:
    generator = torch.Generator().manual_seed(outputs)
    for channels in (32, 7, 40):
        x = walled(torch.randn(2, 9, 13, channels, generator=generator))
        weight, bias = torch.randn(outputs, channels, generator=generator), torch.randn(outputs, generator=generator)
        x[0, 0, 0], x[0, 0, 1] = 0, x[0, 0, 1] * 1e-6
        values, confidence = torch.empty(2, 9, 13, outputs - 1), torch.empty(2, 9, 13)
        for b in (bias, None):
            cpu_ops.predict_(x, weight, b, inverse_log, values, confidence)
            want = reference.predict(x.double(), weight.double(), b, inverse_log)
            close(values, want[0], 1e-5)
            close(confidence, want[1], 1e-5)
    extreme = torch.tensor([float("nan"), float("inf"), -float("inf"), 200.0, -200.0, 88.5, 1e-6, -1e-6, 0.0])
    x = torch.zeros(1, 1, 9, 32)
    x[..., 0] = extreme
    weight = torch.zeros(2, 32)
    weight[:, 0] = 1
    values, confidence = torch.empty(1, 1, 9, 1), torch.empty(1, 1, 9)
    cpu_ops.predict_(x[..., :1].contiguous(), weight[:, :1], None, inverse_log, values, confidence)
    want = reference.predict(x[..., :1], weight[:, :1], None, inverse_log)
    torch.testing.assert_close(values, want[0], rtol=1e-6, atol=0, equal_nan=True)
    torch.testing.assert_close(confidence, want[1], rtol=1e-6, atol=0, equal_nan=True)


@every_library
def test_weight_only_layers_of_few_rows(library: compiled.Library) -> None:
    for m, k, n in ((1, 64, 8), (32, 37, 9), (8, 1037, 65), (33, 64, 4)):
        x, weight, scale = hard_rows(m, k), codes(n, k, seed=7), torch.full((n, 1), 0.003)
        for bias in (None, torch.linspace(-1, 1, n).half()):
            close(cpu_ops.w8a16_linear(x, weight, scale, bias), reference.w8a16_linear(x, weight, scale, bias))


@every_library
@pytest.mark.parametrize("input_scale", [None, torch.tensor([0.02])])
def test_nan_and_inf_stay_visible(library: compiled.Library, input_scale: torch.Tensor | None) -> None:
    x = torch.ones(3, 64)
    x[0, 5], x[1, 5] = float("nan"), float("inf")
    operands = (*cpu_ops.quantize_rows(x, input_scale), codes(8, 64), torch.ones(8, 1))
    y = cpu_ops.int8_gemm(*operands, Epilogue(None, x.dtype))
    assert not y[:2].isfinite().any()
    assert y[2].isfinite().all()
    normed = cpu_ops.layer_norm_quantize(x, torch.ones(64), torch.ones(64), 1e-5, input_scale)[1]
    assert not normed[:2].isfinite().any()


@pytest.mark.slow
@pytest.mark.skipif(compiled.unavailable() is not None, reason=str(compiled.unavailable()))
def test_fewer_threads_than_asked_for() -> None:
    """OpenMP gives what its limit allows, in every library."""
    code = (
        "import torch; from tests.kernels.compiled import NAMES, _load; from vggt_int8.kernels import reference\n"
        "from vggt_int8.kernels.cpu.compiled import _multiply\n"
        "torch.set_num_threads(7)\n"
        "x, w = torch.randint(-127, 128, (2, 300, 64), dtype=torch.int8)\n"
        "found = [library for library in map(_load, NAMES) if not isinstance(library, str)]\n"
        "assert found\n"
        "assert all(torch.equal(_multiply(library, x, w), reference.int8_matmul(x, w)) for library in found)"
    )
    env = os.environ | {"OMP_THREAD_LIMIT": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, cwd=Path(__file__).parents[2])


PROBE = "import warnings; warnings.simplefilter('error'); from vggt_int8.kernels.cpu import compiled as c; "


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return python("-c", PROBE + code, env=os.environ | env)


def compile_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what is not about the speed of kernels: a seventh of the time that -O3 takes."""
    monkeypatch.setattr(compiler, "_FLAGS", ["-O0" if flag == "-O3" else flag for flag in compiler._FLAGS])


def load_anew(monkeypatch: pytest.MonkeyPatch, **env: str) -> compiled.Library | str:
    """As a process with these variables loads them first."""
    with monkeypatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        return compiled._load.__wrapped__()


def test_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_anew(monkeypatch, VGGT_INT8_CPU_KERNELS="off") == "VGGT_INT8_CPU_KERNELS=off"
    with pytest.raises(ValueError, match="must be on, off or no-amx, not 'fast'"):
        load_anew(monkeypatch, VGGT_INT8_CPU_KERNELS="fast")


@pytest.mark.slow
@pytest.mark.skipif(compiled.unavailable() is not None, reason=str(compiled.unavailable()))
def test_amx_can_be_switched_off() -> None:
    name = run("print(c.library().name)", VGGT_INT8_CPU_KERNELS="no-amx").stdout
    assert name.strip() in ("compiled kernels on AVX-512 VNNI", "compiled kernels on AVX2")


@pytest.mark.slow
@pytest.mark.skipif(compiled.unavailable() is not None, reason=str(compiled.unavailable()))
def test_without_a_working_compiler_a_warning_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_quickly(monkeypatch)
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no such thing >&2\nexit 3\n")
    broken.chmod(0o755)
    here = {"XDG_CACHE_HOME": str(tmp_path)}
    for env, message in (
        (here | {"CC": str(broken)}, "INT8 runs on PyTorch's slower CPU functions.*broken failed: no such thing"),
        (here | {"CC": "", "PATH": str(tmp_path)}, "there is no C compiler: install gcc, or name one in CC"),
        (here | {"CC": "no-such-cc -m64"}, "CC names 'no-such-cc', which is not there"),
    ):
        with pytest.warns(RuntimeWarning, match=message):
            assert isinstance(load_anew(monkeypatch, **env), str)
    # Without a folder to keep them in, kernels are made for this process alone.
    with pytest.warns(RuntimeWarning, match=f"{broken}/vggt-int8 cannot be used.*XDG_CACHE_HOME"):
        load_anew(monkeypatch, XDG_CACHE_HOME=str(broken))

    def home() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", home)
    with pytest.warns(RuntimeWarning, match="no home: name a folder for the compiled kernels in XDG_CACHE_HOME"):
        load_anew(monkeypatch, XDG_CACHE_HOME="")


@pytest.mark.slow
@pytest.mark.skipif(compiled.unavailable() is not None, reason=str(compiled.unavailable()))
def test_processes_that_compile_at_once_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_quickly(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    both = multiprocessing.get_context("fork")
    names = both.SimpleQueue()

    def load() -> None:
        torch.set_num_threads(1)  # the parent's threads are not here
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            names.put(compiled._load.__wrapped__().name)

    runs = [both.Process(target=load, daemon=True) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(timeout=300)
    assert [run.exitcode for run in runs] == [0, 0]
    assert names.get() == names.get()
    (made,) = (tmp_path / "vggt-int8").iterdir()  # and nothing is left over
    assert made.suffix == ".so"


@pytest.mark.slow
@pytest.mark.skipif(compiled.unavailable() is not None, reason=str(compiled.unavailable()))
def test_a_damaged_library_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CC may hold flags, too."""
    compile_quickly(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "gcc -g0")
    whole = compiler.build()
    assert whole.is_relative_to(tmp_path)
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(load_anew(monkeypatch), compiled.Library)
        assert compiler.build() == whole
    assert len(whole.read_bytes()) == len(content)
