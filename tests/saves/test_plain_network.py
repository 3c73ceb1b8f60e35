"""The plain network saves whole, too, and refuses files of two saves: as `VGGTInt8`, without quantization."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from tests.kills import killed_before
from vggt_int8 import VGGT, CheckpointError, VGGTConfig, VGGTInt8
from vggt_int8.files import sweep

INDEX = "model.safetensors.index.json"
SIZES = {"img_size": 28, "embed_dim": 32, "encoder_depth": 1, "encoder_num_heads": 2, "depth": 1, "num_heads": 2}
HEADS = {"camera_depth": 1, "camera_num_heads": 2, "camera_iterations": 1, "dpt_layers": [0, 0, 0, 0]}
OFF = {"enable_point": False, "enable_track": False, "enable_depth": False}


def network(seed: int) -> VGGT:
    torch.manual_seed(seed)
    return VGGT(VGGTConfig(**SIZES, **HEADS, **OFF))


def same(a: nn.Module, b: nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


SIZES_OF_FILES = [("5GB", "200KB")]  # of the largest file, before and after
OTHER_SIZES = [("200KB", "200KB"), ("5GB", "5GB"), ("200KB", "80KB"), ("200KB", "5GB")]


@pytest.mark.parametrize(  # `tests/pretrained/test_whole_saves.py` has the same steps for the other class
    ("before", "after"),
    [
        *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in SIZES_OF_FILES),
        *(pytest.param(*sizes, marks=pytest.mark.exhaustive) for sizes in OTHER_SIZES),
    ],
)
def test_a_save_that_is_killed_before_any_step(tmp_path: Path, before: str, after: str) -> None:
    old, new, start = network(0), network(1), tmp_path / "start"
    old.save_pretrained(start, max_shard_size=before)
    (start / "README.md").write_text("mine")
    seen = []
    for moment in range(200):
        folder = tmp_path / f"at-{moment}"
        shutil.copytree(start, folder)
        killed = killed_before(moment, lambda: new.save_pretrained(folder, max_shard_size=after))  # noqa: B023
        assert (folder / "README.md").read_text() == "mine"
        seen.append(same(VGGT.from_pretrained(folder, verify=True), new))
        assert seen[-1] or same(VGGTInt8.from_pretrained(folder), old)
        if not killed:
            break
        sweep(folder)
        assert not list(folder.glob(".*")), "leftovers are swept"
        shutil.rmtree(folder)
    assert seen == sorted(seen), "first always the old one, then always the new one"
    assert set(seen) == {False, True}
    assert len(seen) > 12


@pytest.fixture(scope="module")
def saves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`a` and `b`, of one shape, whole and in shards. Read only."""
    folder = tmp_path_factory.mktemp("saves")
    for seed, name in enumerate("ab"):
        model = network(seed)
        model.save_pretrained(folder / name)
        model.save_pretrained(folder / f"{name}-shards", max_shard_size="80KB")
    return folder


@pytest.mark.parametrize("shards", ["", "-shards"])
def test_files_of_two_saves_are_no_model(tmp_path: Path, saves: Path, shards: str) -> None:
    for name in sorted(path.name for path in (saves / f"a{shards}").iterdir()):
        mixed = tmp_path / name
        shutil.copytree(saves / f"a{shards}", mixed)
        shutil.copy(saves / f"b{shards}" / name, mixed / name)
        with pytest.raises(CheckpointError, match="holds files of different saves"):
            VGGT.from_pretrained(mixed)
        with pytest.raises(CheckpointError, match="holds files of different saves"):
            VGGT.from_pretrained(tmp_path, subfolder=name)


def test_one_id_and_the_same_bytes_as_the_other_class(tmp_path: Path, saves: Path) -> None:
    save_id = json.loads((saves / "a-shards" / "config.json").read_text())["save"]["id"]
    assert json.loads((saves / "a-shards" / INDEX).read_text())["metadata"]["save_id"] == save_id
    for file in (saves / "a-shards").glob("*.safetensors"):
        with safe_open(file, framework="pt") as handle:
            assert handle.metadata() == {"format": "pt", "save_id": save_id}
    VGGT.from_pretrained(saves / "a").save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (saves / "a" / name).read_bytes()


def test_verify_finds_a_flipped_bit(tmp_path: Path, saves: Path) -> None:
    shutil.copytree(saves / "a", tmp_path / "flipped")
    file = tmp_path / "flipped" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-64] ^= 1
    file.write_bytes(content)
    VGGT.from_pretrained(tmp_path / "flipped")
    with pytest.raises(CheckpointError, match=r"model\.safetensors has been changed or damaged"):
        VGGT.from_pretrained(tmp_path / "flipped", verify=True)


def test_into_the_folder_that_it_was_loaded_from(tmp_path: Path, saves: Path) -> None:
    """Weights may be mapped from the very files that are replaced."""
    for shards in ("", "-shards"):
        folder = tmp_path / f"own{shards}"
        shutil.copytree(saves / f"a{shards}", folder)
        for size in ("200KB", "5GB", "80KB"):
            model = VGGT.from_pretrained(folder)
            model.save_pretrained(folder, max_shard_size=size)
            assert same(VGGT.from_pretrained(folder, verify=True), network(0))
            assert same(model, network(0))


@pytest.mark.parametrize("kind", [VGGT, VGGTInt8])
def test_options_without_effect_are_refused(tmp_path: Path, kind: type[VGGT]) -> None:
    model = kind(network(0).config)
    for options, message in [
        ({"max_shard_sise": "1MB"}, r"does not take max_shard_sise=1MB: it takes .*max_shard_size"),
        ({"safe_serialization": False}, "does not take safe_serialization=False: a save is safetensors"),
        ({"distributed_checkpoint": True}, "does not take distributed_checkpoint=True"),
        ({"commit_message": "hello"}, "commit_message with push_to_hub=True alone"),
        ({"repo_id": "a/b"}, "repo_id with push_to_hub=True alone"),
        ({"max_shard_size": True}, "max_shard_size is True; it must be an integer of bytes, or text like"),
    ]:
        with pytest.raises(TypeError, match=message):
            model.save_pretrained(tmp_path / "out", **options)
    with pytest.raises(TypeError, match="state_dict= of a quantized model"):
        VGGTInt8.from_pretrained("embedded", recipe="int8_dynamic").save_pretrained(tmp_path / "out", state_dict={})
    with pytest.raises(CheckpointError, match="variant='fp16' would share one"):
        model.save_pretrained(tmp_path / "out", variant="fp16")
    assert list(tmp_path.iterdir()) == []
    # What accelerate's loops pass, and what asks for what happens anyway.
    model.save_pretrained(tmp_path / "out", is_main_process=True, save_function=torch.save, safe_serialization=True)
    assert same(kind.from_pretrained(tmp_path / "out"), model)


def test_other_values_by_state_dict(tmp_path: Path) -> None:
    model, other = network(0), network(1)
    model.save_pretrained(tmp_path / "out", state_dict=other.state_dict(), max_shard_size="80KB")
    assert same(VGGT.from_pretrained(tmp_path / "out", verify=True), other)


def test_other_files_that_look_alike_stay(tmp_path: Path, saves: Path) -> None:
    mine = ["README.md", "model-best-of-three.safetensors", "model.fp16.safetensors", "pytorch_model.bin", "my.json"]
    shutil.copytree(saves / "a-shards", tmp_path / "out")
    for name in mine:
        (tmp_path / "out" / name).write_text("mine")
    network(1).save_pretrained(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors", *mine}


def test_home_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    network(0).save_pretrained("~/out")
    network(1).save_pretrained("~/out", max_shard_size="80KB")
    assert same(VGGT.from_pretrained("~/out"), network(1))
    monkeypatch.chdir(tmp_path / "out")
    network(0).save_pretrained(".")
    assert same(VGGT.from_pretrained("."), network(0))
    assert sorted(os.listdir(tmp_path)) == ["out"]
    assert sorted(os.listdir()) == ["config.json", "model.safetensors"]
