"""A quantized model goes up to the Hub's stand-in from one process and comes back, bit for bit, in another."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
from huggingface_hub import ModelCard

from tests.hub_standin.server import HubServer

PARITY = Path(__file__).parent / "data" / "parity"
REPO = "me/tiny.w8a8"

# Both programs end with a line that depends on every bit of the model and of what it computes.
DIGEST = """
import hashlib, sys, torch
from vggt_int8 import VGGTInt8
def digest(model):
    state = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    images = torch.rand(2, 3, 42, 56, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        output = model.eval()(images, query_points=torch.tensor([[20.0, 10.0]]))
    result = hashlib.sha256()
    for name, tensor in output.items():
        result.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return f"{state.hexdigest()} {result.hexdigest()}"
"""
PUSH = (
    DIGEST
    + """
model = VGGTInt8.from_pretrained(sys.argv[1], recipe="int8_dynamic", backend="reference")
address = model.push_to_hub("tiny.w8a8", max_shard_size=sys.argv[2])
print(address)
print(digest(model))
"""
)
PULL = (
    DIGEST
    + """
print(digest(VGGTInt8.from_pretrained(sys.argv[1], backend="reference")))
"""
)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    config = json.loads((PARITY / "tiny_vggt_config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "vggt"}))
    shutil.copy(PARITY / "tiny_vggt.safetensors", folder / "model.safetensors")
    return folder


def python(hub: HubServer, home: Path, program: str, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **hub.environment(str(home)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(("max_shard_size", "sharded"), [("5GB", False), ("200KB", True)])
def test_push_and_load_in_a_fresh_process(
    hub: HubServer, tiny: Path, tmp_path: Path, max_shard_size: str, sharded: bool
) -> None:
    push = python(hub, tmp_path / "home1", PUSH, str(tiny), max_shard_size)
    assert push.returncode == 0, push.stderr
    address, pushed = push.stdout.splitlines()
    tree = hub.repos[REPO].commits[address.rpartition("/")[2]]
    weights = {name for name, file in tree.items() if name.endswith(".safetensors")}
    assert (len(weights) > 1) is sharded
    assert all(tree[name].sha256 for name in weights), "weights go through LFS"
    assert {"config.json", "README.md"} <= set(tree)

    pull = python(hub, tmp_path / "home2", PULL, REPO)
    assert pull.returncode == 0, pull.stderr
    assert pull.stdout.splitlines() == [pushed]
    assert hub.failures == []

    card = ModelCard(hub.content(tree["README.md"]).decode())
    assert card.data.library_name == "vggt-int8"
    assert "int8_dynamic" in card.content
    tensors = [tensor for name in weights for tensor in safetensors.torch.load(hub.content(tree[name])).values()]
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6
    assert f"| **total** | **{total:.1f}** |" in card.content


def test_damage_on_the_hub_is_noticed(hub: HubServer, tiny: Path, tmp_path: Path) -> None:
    """Other bytes of the same length under the same name: the stand-in serves them, the loader refuses them."""
    push = python(hub, tmp_path / "home1", PUSH, str(tiny), "5GB")
    assert push.returncode == 0, push.stderr
    repo = hub.repos[REPO]
    weights = repo.commits[repo.branches["main"]]["model.safetensors"]
    assert weights.sha256 is not None
    hub.objects[weights.sha256] = bytes(weights.size)
    pull = python(hub, tmp_path / "home2", PULL, REPO)
    assert pull.returncode == 1
    assert "CheckpointError" in pull.stderr


def test_push_without_a_valid_token_uploads_nothing(hub: HubServer, tiny: Path, tmp_path: Path) -> None:
    program = "import os; os.environ['HF_TOKEN'] = 'hf_wrong'\n" + PUSH
    push = python(hub, tmp_path / "home", program, str(tiny), "5GB")
    assert push.returncode == 1
    assert "401" in push.stderr
    assert hub.repos == {}
    assert hub.objects == {}
