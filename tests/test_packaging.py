"""The wheel holds everything that runs: recipes behind their symlink, assets, the command, no tests."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_wheel_is_complete(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("vggt_int8", "recipes"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    # Without build isolation nothing is downloaded: setuptools comes with torch.
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "."]
    build = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300)
    assert build.returncode == 0, build.stderr
    (wheel,) = source.glob("vggt_int8-*.whl")
    assert wheel.stat().st_size < 25e6
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = next(name for name in names if name.endswith("entry_points.txt"))
        assert "vggt-int8 = vggt_int8.cli:main" in archive.read(entry_points).decode()
    shipped = [path for path in (ROOT / "vggt_int8").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {str(path.relative_to(ROOT)) for path in shipped}
    expected |= {f"vggt_int8/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.toml")}
    assert expected - names == set()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"vggt_int8"}


def test_the_constraints_of_the_pages_are_the_others_but_for_what_gradio_and_viser_need() -> None:
    plain, pages = (pins(ROOT / name) for name in ("constraints.txt", "constraints-app.txt"))
    different = {name for name in plain.keys() | pages.keys() if plain.get(name) != pages.get(name)}
    assert different == {"pillow", "rich", "gradio", "viser"}


def pins(path: Path) -> dict[str, str]:
    lines = (line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#"))
    return dict(line.split("==") for line in lines)
