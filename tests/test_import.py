"""Importing the package has no side effects: no network, no GPU, no file, none of the noisy libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.warm import python

ROOT = Path(__file__).parent.parent

# Python tells its audit hooks whatever leaves the process. CUDA may be asked whether it is there, which does not
# start it.
PROGRAM = """
import json, os, sys
events = []
WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink",
           "shutil.copyfile", "shutil.move", "tempfile.mkstemp", "tempfile.mkdtemp")
def watch(event, args):
    if event.startswith("socket.") and event not in ("socket.gethostname", "socket.__new__"):
        events.append([event, repr(args)])
    elif event in CHANGES or event in ("subprocess.Popen", "os.system", "os.posix_spawn"):
        events.append([event, repr(args)])
    elif event == "open" and isinstance(args[0], (str, bytes)):
        path, mode, flags = args
        if flags & WRITE and os.fsdecode(path) != os.devnull:
            events.append([event, repr(args)])
sys.addaudithook(watch)
import vggt_int8
heavy = [m for m in ("torch", "transformers", "numpy", "PIL", "safetensors") if m in sys.modules]
import torch
seen = {
    "events": list(events),
    "heavy": heavy,
    "cuda": torch.cuda.is_initialized(),
    "modules": sorted(m for m in ("torchao", "bitsandbytes", "triton") if m in sys.modules),
    "cli": [m for m in sys.modules if m.startswith(("vggt_int8.cli", "typer", "rich"))],
}
from transformers import CONFIG_MAPPING  # after the package: the other order is tried below
print(json.dumps(seen | {"registered": "vggt" in CONFIG_MAPPING}))
"""


@pytest.mark.slow
def test_import_has_no_side_effects(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o555)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_", "TORCH", "TRANSFORMERS_"))}
    environment = kept | {"HOME": str(home), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    seen = json.loads(process.stdout)
    assert seen == {"events": [], "heavy": [], "cuda": False, "modules": [], "cli": [], "registered": True}
    assert list(home.iterdir()) == []
    assert [p.name for p in tmp_path.iterdir()] == ["home"]


@pytest.mark.slow
def test_the_watch_sees_what_it_should(tmp_path: Path) -> None:
    """The same program with a package that does everything wrong, so that the test above can fail."""
    package = tmp_path / "vggt_int8"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import socket, os, tempfile, subprocess\n"
        "open('left.txt', 'w').close()\n"
        "try: socket.create_connection(('127.0.0.1', 9))\n"
        "except OSError: pass\n"
        "os.mkdir('folder')\n"
        "subprocess.run(['true'])\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    kinds = {event for event, _ in json.loads(process.stdout)["events"]}
    assert {"open", "socket.connect", "os.mkdir", "subprocess.Popen"} <= kinds


# AutoConfig is there before the package, AutoModel comes after it: either way they know VGGT.
AUTO = """
import sys
from transformers import AutoConfig
import vggt_int8
assert "transformers.models.auto.modeling_auto" not in sys.modules
assert type(AutoConfig.from_pretrained(sys.argv[1])) is vggt_int8.VGGTConfig
from transformers import AutoModel
loaders = [sys.modules[f"transformers.models.auto.{name}_auto"].__loader__ for name in ("configuration", "modeling")]
assert type(loaders[0]) is type(loaders[1]), loaders
assert "torchao" not in sys.modules
model = AutoModel.from_pretrained(sys.argv[1])
assert type(model) is vggt_int8.VGGTInt8, type(model)
assert type(AutoModel.from_config(model.config)) is vggt_int8.VGGTInt8
print(sum(p.double().sum().item() for p in model.parameters()))
"""


@pytest.mark.slow
def test_auto_classes_know_ours_in_either_order_of_imports(bare_checkpoint: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", AUTO, str(bare_checkpoint)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    expected = sum(tensor.double().sum().item() for tensor in load_file(bare_checkpoint / "model.safetensors").values())
    assert abs(float(process.stdout) - expected) < 1e-6 * abs(expected)


@pytest.mark.slow
def test_modules_that_need_transformers_keep_what_it_imports_off_the_console() -> None:
    process = python("-c", "import vggt_int8.app, sys; print('torchao' in sys.modules)")
    assert (process.stdout, process.stderr) == ("True\n", "")
