"""The environment variables that the package reads: known, and a value that makes no sense is told of by name."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vggt_int8.cli import app
from vggt_int8.kernels.cpu import compiled, compiler
from vggt_int8.kernels.cuda.tiles import Size, gemm_tile

ROOT = Path(__file__).parent.parent
OWN = {"VGGT_INT8_CPU_KERNELS", "VGGT_INT8_TILES", "VGGT_INT8_DEBUG"}
OF_OTHERS = {
    *("CC", "XDG_CACHE_HOME", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"),
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"),
}
NONSENSE = ["", "  ", "ünïcode", "9" * 5000, "-1"]


def short(value: str) -> str:
    return repr(value)[:12]


def test_all_of_them_are_known_and_the_own_ones_documented() -> None:
    sources = "\n".join(path.read_text() for path in sorted((ROOT / "vggt_int8").rglob("*.py")))
    named = set(re.findall(r'environ(?:\.get\(|\[)"?\'?(\w+)', sources)) | set(
        re.findall(r'"(VGGT_INT8_\w+)"', sources)
    )
    assert named - {"SETTING", "ENVIRONMENT", "VGGT_INT8_"} <= OWN | OF_OTHERS
    table = (ROOT / "docs" / "performance.md").read_text()
    assert {name for name in OWN if f"| `{name}` |" in table} == OWN


@pytest.fixture
def _afresh() -> Iterator[None]:
    compiled._load.cache_clear()
    yield
    compiled._load.cache_clear()


@pytest.mark.usefixtures("_afresh")
@pytest.mark.parametrize("value", [*NONSENSE, "ON", "off "], ids=short)
def test_cpu_kernels(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("VGGT_INT8_CPU_KERNELS", value)
    with pytest.raises(ValueError, match=r"^VGGT_INT8_CPU_KERNELS must be on, off or no-amx, not .{,100}$"):
        compiled.unavailable()


@pytest.mark.parametrize("value", [*NONSENSE[2:], "'open"], ids=short)
def test_compiler(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CC", value)
    with pytest.raises(compiler.NoCompiler, match=r"^CC .{,200}$"):
        compiler._compiler()


@pytest.mark.parametrize("value", NONSENSE[:2], ids=short)
def test_an_empty_compiler_is_none(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.delenv("CC", raising=False)
    want = compiler._compiler()
    monkeypatch.setenv("CC", value)
    assert compiler._compiler() == want


@pytest.mark.parametrize("value", NONSENSE[1:], ids=short)
def test_tiles(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("VGGT_INT8_TILES", value)
    with pytest.raises(ValueError, match=r"is no table of tiles: .*without VGGT_INT8_TILES"):
        gemm_tile(90, Size(1041, 1024, 1024, residual=False))


@pytest.mark.parametrize("value", [*NONSENSE[2:], "maybe"], ids=short)
def test_debug(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("VGGT_INT8_DEBUG", value)
    result = CliRunner().invoke(app, ["recipes", "--json"])
    assert result.exit_code == 2
    assert "VGGT_INT8_DEBUG" in result.stderr
