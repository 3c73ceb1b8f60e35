"""deploy/ and examples/: scripts and images as far as they go without a Docker engine, nodes without their hosts."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import vggt_int8

ROOT = Path(__file__).parent.parent
SCRIPTS = ["deploy/install.sh", "deploy/runpod/setup.sh", "deploy/runpod/template.sh"]
TESTS_OF_SCRIPTS = ["tests/deploy/install.bats", "tests/deploy/runpod.bats"]
IMAGES = ["deploy/cpu.Dockerfile", "deploy/cuda.Dockerfile"]


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("example", ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lint(program: str, *paths: str) -> str:
    command = [str(Path(sys.executable).with_name(program)), *paths]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout


def test_scripts_are_clean() -> None:
    assert lint("shellcheck", "--external-sources", *SCRIPTS, *TESTS_OF_SCRIPTS, ".ci/run") == ""


@pytest.mark.parametrize("image", IMAGES)
def test_images_are_clean_and_take_what_they_name(image: str) -> None:
    assert lint("hadolint", "--no-color", image) == ""
    text = (ROOT / image).read_text(encoding="utf-8")
    assert re.findall(r"^FROM \S+:\S*\d+\.\d+", text, flags=re.MULTILINE)
    assert re.search(r"^USER \d+$", text, flags=re.MULTILINE)
    kept = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in kept if line.startswith("!")} >= {"deploy/install.sh", "vggt_int8", "recipes"}
    assert all((ROOT / line[1:]).exists() for line in kept if line.startswith("!"))


@pytest.mark.slow
@pytest.mark.parametrize("tests", TESTS_OF_SCRIPTS)
def test_scripts_do_what_they_should(tests: str) -> None:
    """With programs in the place of Python, pip, apt and runpodctl that note how they are called."""
    command = [str(Path(sys.executable).with_name("bats")), str(ROOT / tests)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^ok ", done.stdout, flags=re.MULTILINE)


def run(script: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = ["bash", str(ROOT / script)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
def test_a_pod_is_set_up_twice(tmp_path: Path) -> None:
    """The steps of the images and of a pod: the second time there is nothing left to do."""
    for words in ("vggt-int8 ", "is up to date"):
        done = run("deploy/runpod/setup.sh", WORKSPACE=str(tmp_path), PYTHON=sys.executable, EXTRAS="")
        assert done.returncode == 0, done.stderr
        assert words in done.stdout
    command = f"source {tmp_path}/vggt-int8.env && vggt-int8 doctor --skip-run && echo $HF_HOME"
    shell = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert shell.returncode == 0, shell.stdout + shell.stderr
    assert shell.stdout.splitlines()[-1] == f"{tmp_path}/huggingface"


def imported(code: str) -> set[tuple[str, str]]:
    """(module, name) of what is taken from this package."""
    froms = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom) and node.module]
    return {(node.module, alias.name) for node in froms if node.module.startswith("vggt_int8") for alias in node.names}


@pytest.mark.parametrize("example", ["comfyui_vggt_int8/__init__.py", "ros2/vggt_node.py"])
def test_examples_take_what_the_pages_show(example: str) -> None:
    """Names of the package itself, or of modules that README.md or docs/ import them from."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    blocks = [block for page in pages for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M)]
    public = {("vggt_int8", name) for name in vggt_int8.__all__}.union(*map(imported, blocks))
    found = imported((ROOT / "examples" / example).read_text())
    assert found
    assert found <= public


@pytest.mark.parametrize("kind", ["glb", "ply"])
def test_the_nodes_of_comfyui(bare_checkpoint: Path, kind: str) -> None:
    nodes = load("examples/comfyui_vggt_int8/__init__.py")
    assert set(nodes.NODE_CLASS_MAPPINGS) == {"LoadVGGTInt8", "ReconstructVGGTInt8"}
    assert "int8_rotated" in nodes.LoadVGGT.INPUT_TYPES()["required"]["recipe"][0]
    (vggt,) = nodes.LoadVGGT().load(str(bare_checkpoint), "none", "cpu")
    depth, file = nodes.Reconstruct().reconstruct(vggt, torch.rand(2, 90, 120, 3), kind)
    assert depth.shape == (2, 42, 56, 3)
    assert not depth.requires_grad
    assert depth.min() > 0
    assert depth.max() == 1
    assert Path(file).stat().st_size > 10_000


def test_the_core_of_the_ros_node(bare_int8: Path) -> None:
    core = load("examples/ros2/vggt_node.py").Core(str(bare_int8), frames=3, device="cpu")
    images = np.random.default_rng(0).integers(0, 256, (5, 48, 64, 3), dtype=np.uint8)
    found = [core.add(image) for image in images]
    assert found[0] is None
    for depth, extrinsic in found[1:]:
        assert (depth.shape, depth.dtype, extrinsic.shape) == ((48, 64), np.float32, (3, 4))
    assert len(core.images) == 3
