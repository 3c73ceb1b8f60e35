"""Files and folders that belong to somebody else: named with the reason, and nothing half written."""

import ctypes
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vggt_int8 import VGGTInt8

ROOT = Path(__file__).parent.parent
IMAGE = ROOT / "tests" / "data" / "parity" / "images" / "landscape.png"
DENIED = "Permission denied"
CASES = {
    **{
        f"{network} {bits}": f"CheckpointError: cannot read the folder .*checkpoint: {DENIED}"
        for network in ("VGGTInt8", "VGGT", "VGGTConfig")
        for bits in ("0", "111", "444")
    },
    "file in 0": rf"CheckpointError: cannot look at \./checkpoint/model\.safetensors: {DENIED}",
    **{
        f"{network} {file}": f"CheckpointError: cannot read checkpoint/{file}: {DENIED}"
        for network in ("VGGTInt8", "VGGT")
        for file in ("config.json", "model.safetensors")
    },
    "shards model.safetensors.index.json": f"CheckpointError: cannot read shards/.*index.json: {DENIED}",
    "image": f"PermissionError: .*{DENIED}: 'photos/a.png'",
    "run image": f"2 .*Error: photos/a.png: {DENIED}",
    "photos 0": f"PermissionError: .*{DENIED}: 'photos'",
    "photos 111": f"PermissionError: .*{DENIED}: 'photos'",
    "photos 444": "ValueError: folder photos holds no images .*without permission",
    "recipe": f"RecipeError: cannot read the recipe mine.toml: {DENIED}",
    "save": "PermissionError: .*closed is not for you to write",
    "save below": "PermissionError: .*closed is not for you to write",
    "save over": "PermissionError: .*checkpoint is not for you to write",
    "run out": "2 .*closed is not for you to write",
    "results": "0 ",
    "over out/report.json 0": "2 .*report of no earlier run lists.*Nothing was replaced",
    "over out/depth 0": f"2 .*out/depth: {DENIED}",
    "over out 0": "2 ",
    "over out 555": "2 .*out is not for you to write",
    "left behind": r"\[\]",
}


def not_almighty() -> None:
    """In the new process: root may no longer read and write what its mode forbids; another user may not anyway."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


pytestmark = pytest.mark.slow  # a process that tries them all, with the model of each


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory, bare_checkpoint: Path) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("unreadable")
    shards = tmp_path_factory.mktemp("shards") / "model"
    VGGTInt8.from_pretrained(bare_checkpoint).save_pretrained(shards, max_shard_size="500KB")
    command = [sys.executable, "-m", "tests.unreadable_cases", *map(str, (folder, bare_checkpoint, shards, IMAGE))]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, preexec_fn=not_almighty)
    assert run.returncode == 0, run.stderr
    found: dict[str, str] = json.loads(run.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", CASES)
def test_what_may_not_be_read_or_written(outcomes: dict[str, str], name: str) -> None:
    assert re.match(CASES[name], outcomes[name], re.DOTALL), outcomes[name]


def test_the_rest(outcomes: dict[str, str]) -> None:
    shard = next(name for name in outcomes if name.startswith("shards model-"))
    assert re.match(f"CheckpointError: cannot read shards/model-00002-.*: {DENIED}", outcomes[shard])
    assert outcomes["kernels"].startswith("None") or "XDG_CACHE_HOME" in outcomes["kernels"], outcomes["kernels"]
    assert outcomes.keys() - CASES.keys() == {shard, "kernels"}
