"""A quantized model goes up to the Hub's stand-in from one process and comes back, bit for bit, in another."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch
from huggingface_hub import ModelCard

from tests import warm
from tests.hub_standin.repository import File
from tests.hub_standin.server import HubServer

pytestmark = pytest.mark.slow  # a process that pushes and one that pulls

WHOLE, SHARDED = "me/tiny.w8a8", "me/tiny.sharded"  # pushed with this max_shard_size:
COMMAND = "me/tiny.command"  # pushed by what the command `push` calls
SHARD_SIZES = {WHOLE: "5GB", SHARDED: "200KB"}

# Both programs print a line for each repository that depends on every bit of the model and of what it computes.
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
        output = model.eval()(images)
    result = hashlib.sha256()
    for name, tensor in output.items():
        result.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return f"{state.hexdigest()} {result.hexdigest()}"
"""
PUSH = (
    DIGEST
    + f"COMMAND = {COMMAND!r}"
    + """
model = VGGTInt8.from_pretrained(sys.argv[1], recipe="int8_dynamic", backend="reference")
for pair in sys.argv[2:]:
    repo, size = pair.split("=")
    print(model.push_to_hub(repo.partition("/")[2], max_shard_size=size), digest(model))
model.save_pretrained(sys.argv[1] + "/saved")
from vggt_int8.pretrained.upload import prepare, send
from pathlib import Path
upload = prepare(Path(sys.argv[1] + "/saved"), COMMAND, "facebook/VGGT-1B", [("Accuracy", "Fine.")], ["indoor"])
print(send(upload, COMMAND, private=True, revision=None, pull_request=False), digest(model))
for _ in range(2):
    send(upload, COMMAND, private=True, revision="trial", pull_request=False)
model.push_to_hub(COMMAND.partition("/")[2], revision="other")
"""
)
PULL = (
    DIGEST
    + """
for repo in sys.argv[1:]:
    print(digest(VGGTInt8.from_pretrained(repo, backend="reference")))
"""
)


@pytest.fixture(scope="module")
def tiny(bare_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bare network, in a folder that may be written to."""
    return Path(shutil.copytree(bare_checkpoint, tmp_path_factory.mktemp("tiny") / "fp32"))


@dataclass
class Pushed:
    """A Hub after the pushes. By repository: the files of the commit that `push_to_hub` named, and the digests."""

    hub: HubServer
    trees: dict[str, dict[str, File]]
    digests: dict[str, str]


@pytest.fixture(scope="module")
def pushed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pushed]:
    """One process pushes the same model whole and in shards."""
    with HubServer() as hub:
        pairs = [f"{repo}={size}" for repo, size in SHARD_SIZES.items()]
        push = python(hub, tmp_path_factory.mktemp("home"), PUSH, str(tiny), *pairs)
        assert push.returncode == 0, push.stderr
        trees, digests = {}, {}
        for repo, line in zip([*SHARD_SIZES, COMMAND], push.stdout.splitlines(), strict=True):
            address, digests[repo] = line.split(maxsplit=1)
            trees[repo] = hub.repos[repo].commits[address.rpartition("/")[2]]
        yield Pushed(hub, trees, digests)
        assert hub.failures == []


def python(hub: HubServer, home: Path, program: str, *args: str) -> subprocess.CompletedProcess[str]:
    return warm.python("-c", program, *args, env={**os.environ, **hub.environment(str(home))})


def test_every_file_arrives(pushed: Pushed) -> None:
    for repo, tree in pushed.trees.items():
        weights = {name for name, file in tree.items() if name.endswith(".safetensors")}
        assert (len(weights) > 1) is (repo == SHARDED)
        assert all(tree[name].sha256 for name in weights), "weights go through LFS"
        assert {"config.json", "README.md"} <= set(tree)

        card = ModelCard(pushed.hub.content(tree["README.md"]).decode())
        assert card.data.library_name == "vggt-int8"
        assert "int8_dynamic" in card.content
        if repo == COMMAND:
            assert "## Accuracy\n\nFine." in card.content
            assert (card.data.base_model, card.data.base_model_relation) == ("facebook/VGGT-1B", "quantized")
            assert pushed.hub.repos[repo].private
        files = [safetensors.torch.load(pushed.hub.content(tree[name])) for name in weights]
        total = sum(tensor.numel() * tensor.element_size() for file in files for tensor in file.values()) / 1e6
        assert f"| **total** | **{total:.1f}** |" in card.content


def test_a_branch_to_commit_to_is_made(pushed: Pushed) -> None:
    assert set(pushed.hub.repos[COMMAND].branches) == {"main", "trial", "other"}


WAYS = (
    DIGEST
    + """
from huggingface_hub import HfApi
repo, first, folder, cache, *others = sys.argv[1:]
for other in (repo, *others):
    print(digest(VGGTInt8.from_pretrained(other, backend="reference")))
model = VGGTInt8.from_pretrained(repo, backend="reference", revision=first)
def told_apart_by(model):
    return model.camera_head.trunk_norm.weight.sum().item()
old = told_apart_by(model)
with torch.no_grad():
    model.camera_head.trunk_norm.weight.mul_(2)
model.push_to_hub(repo.partition("/")[2])
new = told_apart_by(model)
model.save_pretrained(folder)
HfApi().create_repo("me/nested", private=True)
HfApi().upload_folder(folder_path=folder, repo_id="me/nested", path_in_repo="int8/small")
def load(name, **keywords):
    return told_apart_by(VGGTInt8.from_pretrained(name, backend="reference", **keywords))
def refused(name, **keywords):
    try:
        load(name, **keywords)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
assert old != new
again = {"cache_dir": cache, "local_files_only": True}
assert refused("me/nested", subfolder="int8/small", **again).startswith("CheckpointError")
assert load(repo, cache_dir=cache) == load(repo, revision="main") == new
assert load(repo, revision=first, cache_dir=cache) == old
assert load("me/nested", subfolder="int8/small", cache_dir=cache) == new
assert load("me/nested", subfolder="int8/small", **again) == load(repo, **again) == new
assert load(repo, revision=first, **again) == old
for wrong in ({"revision": "no-such-branch"}, {"subfolder": "int8"}):
    print(refused("me/nested" if "subfolder" in wrong else repo, **wrong).replace("\\n", " "))
"""
)


def test_a_fresh_process_loads_the_same_model_by_any_name(pushed: Pushed, tmp_path: Path) -> None:
    """By repository, revision and folder, from a cache of one's own, and from there without the Hub."""
    first, others = list(pushed.hub.repos[COMMAND].commits)[-1], [WHOLE, SHARDED]
    places = [str(tmp_path / "saved"), str(tmp_path / "cache")]
    run = python(pushed.hub, tmp_path / "home", WAYS, COMMAND, first, *places, *others)
    assert run.returncode == 0, run.stderr
    *digests, revision, folder = run.stdout.splitlines()
    assert digests == [pushed.digests[repo] for repo in (COMMAND, *others)]
    assert revision.startswith("CheckpointError")
    assert "no-such-branch" in revision
    assert folder.startswith("CheckpointError: there is no config.json in 'me/nested/int8' on the Hub")


def test_damage_on_the_hub_is_noticed(pushed: Pushed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other bytes of the same length under the same name: the stand-in serves them, the loader refuses them."""
    weights = pushed.trees[WHOLE]["model.safetensors"]
    assert weights.sha256 is not None
    monkeypatch.setitem(pushed.hub.objects, weights.sha256, bytes(weights.size))
    pull = python(pushed.hub, tmp_path, PULL, WHOLE)
    assert pull.returncode == 1
    assert "CheckpointError" in pull.stderr


def test_push_without_a_valid_token_uploads_nothing(tiny: Path, tmp_path: Path) -> None:
    program = "import os; os.environ['HF_TOKEN'] = 'hf_wrong'\n" + PUSH
    with HubServer() as hub:
        push = python(hub, tmp_path, program, str(tiny), f"{WHOLE}=5GB")
    assert push.returncode == 1
    assert "401" in push.stderr
    assert hub.repos == {}
    assert hub.objects == {}


SAVE_AND_PUSH = """
import os, sys, torch
from huggingface_hub.constants import HF_HUB_CACHE
from vggt_int8 import VGGT, VGGTInt8
for kind, name in ((VGGT, "plain"), (VGGTInt8, "other")):
    model = kind.from_pretrained(sys.argv[1])
    folder, words = f"{sys.argv[2]}/{name}", {"commit_message": "Saved whole"}
    if kind is VGGTInt8:
        words |= {"commit_description": "In one go", "tags": ["indoor", "vggt"]}
    model.save_pretrained(folder, push_to_hub=True, max_shard_size="1MB", **words)
    again = kind.from_pretrained(f"me/{name}", verify=True).state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in model.state_dict().items())
hidden = [name for _, folders, files in os.walk(HF_HUB_CACHE) for name in (*folders, *files) if ".partial-" in name]
assert hidden == [], hidden
"""


def test_a_save_that_is_pushed_as_well(tiny: Path, tmp_path: Path) -> None:
    """Both classes: what arrives is one save, in the same shards, and is verified from the cache."""
    with HubServer() as hub:
        run = python(hub, tmp_path / "home", SAVE_AND_PUSH, str(tiny), str(tmp_path))
        assert run.returncode == 0, run.stderr
        assert hub.failures == []
        for name in ("plain", "other"):
            sent = hub.repos[f"me/{name}"].commits
            tree = list(sent.values())[-1]
            if name == "other":
                card = ModelCard(hub.content(tree["README.md"]).decode())
                assert card.data.tags == ["vggt", "3d-reconstruction", "depth-estimation", "indoor"]
            local = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
            assert {file: hub.content(tree[file]) for file in local} == local
