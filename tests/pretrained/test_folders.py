"""The files of a checkpoint's folder, here and in the Hub's cache: missing, foreign, unreadable, links."""

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.states import assert_same_state
from vggt_int8 import CheckpointError, VGGTInt8

INDEX = "model.safetensors.index.json"
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, bare_checkpoint: Path) -> Path:
    """The golden network in several files. Read only."""
    folder = tmp_path_factory.mktemp("shards") / "fp32"
    VGGTInt8.from_pretrained(bare_checkpoint).save_pretrained(folder, max_shard_size="450KB")
    return folder


def first_shard(folder: Path) -> Path:
    return next(iter(sorted(folder.glob("model-*.safetensors"))))


def rename_in_index(folder: Path, name: str) -> None:
    text = (folder / INDEX).read_text()
    (folder / INDEX).write_text(text.replace(f'"{first_shard(folder).name}"', json.dumps(name)))


def replace_first(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = first_shard(folder)
        file.rename(folder.parent / "moved")
        make(file)

    return change


def without_metadata(folder: Path) -> None:
    data = json.loads((folder / INDEX).read_text())
    del data["metadata"]
    (folder / INDEX).write_text(json.dumps(data))


FILES: list[tuple[str, Callable[[Path], Any], str]] = [
    (
        "an absolute path",
        lambda f: rename_in_index(f, "/etc/passwd"),
        "names '/etc/passwd', which is no file of",
    ),
    ("a path upwards", lambda f: rename_in_index(f, "../moved"), r"names '\.\./moved', which is no file"),
    ("a path below", lambda f: rename_in_index(f, "sub/x.safetensors"), "which is no file of its folder"),
    ("a device", lambda f: rename_in_index(f, "/dev/zero"), "names '/dev/zero'"),
    ("a link to a device", replace_first(lambda p: p.symlink_to("/dev/zero")), "is a device, not a file"),
    ("a link out of the folder", replace_first(lambda p: p.symlink_to("../moved")), "is a link out of its folder, to"),
    ("a dangling link", replace_first(lambda p: p.symlink_to("gone")), "is a link to gone, which does not exist"),
    ("a folder", replace_first(lambda p: p.mkdir()), "is a folder, not a file"),
    ("a pipe", replace_first(lambda p: os.mkfifo(p)), "is a pipe, not a file"),
    ("a missing shard", replace_first(lambda p: None), r"there is no file .*model-00001-of"),
    ("no metadata", without_metadata, r"index\.json has no metadata"),
    ("a deep index", lambda f: (f / INDEX).write_text("[" * 100_000), "nested too deep|not a valid JSON"),
    ("an index that is a pipe", lambda f: ((f / INDEX).unlink(), os.mkfifo(f / INDEX)), r"index\.json is a pipe"),
    ("weights that are a folder", lambda f: (f / "model.safetensors").mkdir(), r"model\.safetensors is a folder, not"),
    ("an adapter beside", lambda f: (f / "adapter_config.json").write_text("{}"), "holds an adapter.*merge_and_unload"),
    ("weights that are a pipe", lambda f: os.mkfifo(f / "model.safetensors"), r"model\.safetensors is a pipe, not a"),
]


@pytest.mark.parametrize(("what", "change", "message"), FILES, ids=[row[0] for row in FILES])
def test_files_that_are_none_of_the_checkpoint(
    tmp_path: Path, shards: Path, what: str, change: Callable[[Path], Any], message: str
) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(shards, folder)
    change(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        VGGTInt8.from_pretrained(folder)
    assert "damaged" not in str(caught.value)


def test_unreadable_files_are_said_to_be_unreadable(
    tmp_path: Path, shards: Path, bare_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a stand-in for the system's refusal: tests may run as root, to whom nothing is refused."""
    real = os.open

    def refuse(path: Any, *args: Any, **kwargs: Any) -> int:
        if str(path).endswith((".safetensors", "secret/config.json")):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    for source in (bare_checkpoint, shards, bare_checkpoint / "model.safetensors"):
        with pytest.raises(CheckpointError, match=r"cannot read .*model.*\.safetensors: Permission denied"):
            VGGTInt8.from_pretrained(source)
    shutil.copytree(bare_checkpoint, tmp_path / "secret")
    with pytest.raises(CheckpointError, match=r"cannot read .*config\.json: Permission denied"):
        VGGTInt8.from_pretrained(tmp_path / "secret")


@pytest.fixture
def cached(tmp_path: Path, shards: Path) -> Path:
    """A snapshot in a cache of the Hub at `tmp_path`, of the model "me/vggt" in several files."""
    repository = tmp_path / "models--me--vggt"
    snapshot = repository / "snapshots" / ("0123abcd" * 5)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    for number, file in enumerate(sorted(shards.iterdir())):
        shutil.copy(file, repository / "blobs" / f"blob{number}")
        (snapshot / file.name).symlink_to(f"../../blobs/blob{number}")
    return snapshot


def test_the_links_of_the_hubs_cache_are_followed(tmp_path: Path, cached: Path, shards: Path) -> None:
    want = VGGTInt8.from_pretrained(shards)
    assert_same_state(VGGTInt8.from_pretrained(cached), want)
    assert_same_state(VGGTInt8.from_pretrained("me/vggt", cache_dir=tmp_path, local_files_only=True), want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("metadata"), "has no metadata"),
        (lambda data: data.pop("weight_map"), "has no weight_map"),
        (
            lambda data: data["weight_map"].update(a="../../../x"),
            "no file of its folder|not .* a file named ../../../x",
        ),
    ],
)
def test_a_bad_index_from_the_hub(
    tmp_path: Path, cached: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    data = json.loads((cached / INDEX).read_text())
    change(data)
    (cached / INDEX).write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=message):
        VGGTInt8.from_pretrained("me/vggt", cache_dir=tmp_path, local_files_only=True)


def test_a_model_that_is_not_cached_is_said_to_be_so_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network is asked")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(
        CheckpointError, match=r"the Hub is not asked \(HF_HUB_OFFLINE or local_files_only\).*embedded"
    ) as e:
        VGGTInt8.from_pretrained("me/nothing", cache_dir=tmp_path, local_files_only=True)
    assert "'embedded' names the small model" in str(e.value)
    assert "\n" not in str(e.value)


def test_a_linked_file_of_weights_is_read(tmp_path: Path, bare_checkpoint: Path) -> None:
    (tmp_path / "config.json").symlink_to(bare_checkpoint / "config.json")
    (tmp_path / "model.safetensors").symlink_to(bare_checkpoint / "model.safetensors")
    assert_same_state(VGGTInt8.from_pretrained(tmp_path), VGGTInt8.from_pretrained(bare_checkpoint))
