"""The first calls of a process whose kernels nobody has compiled."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys, threading, time, torch
from triton import knobs
from tests.runtime.cuda.models import build, images_of
from vggt_int8 import VGGT, VGGTConfig

late = []
def note(src, cache_hit, **_):
    if threading.current_thread() is threading.main_thread():
        late.append(src.name)
knobs.compilation.listener = note

with torch.device("cuda"):
    weights = VGGT(VGGTConfig(enable_track=False)).state_dict()
model = build({name: tensor.cpu() for name, tensor in weights.items()}, "int8_dynamic", "native")
images = images_of(int(sys.argv[1]))
torch.cuda.synchronize()
for _ in range(3):
    start = time.perf_counter()
    model(images)
    torch.cuda.synchronize()
    print(time.perf_counter() - start)
print(*late, file=sys.stderr)
sys.exit(len(late))
"""


@pytest.mark.parametrize("frames", [1, 10])
def test_the_first_call_on_a_fresh_machine(tmp_path: Path, frames: int) -> None:
    """Every kernel is compiled beforehand, side by side, and none by the call that needs it."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", SCRIPT, str(frames)]
    root = Path(__file__).parents[3]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=root)
    assert process.returncode == 0, process.stderr
    seconds = [float(line) for line in process.stdout.split()]
    print(f"{frames} frames: first three calls {seconds} s")
    assert seconds[0] < 6
    assert seconds[2] < 1
