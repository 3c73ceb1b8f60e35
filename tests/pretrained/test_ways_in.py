"""Ways into a model: names of sources, single files, names of tensors. One row a case."""

import os
import shutil
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel

from tests.other_weights import copy_config
from tests.states import assert_same_state
from vggt_int8 import VGGT, CheckpointError, VGGTConfig, VGGTInt8, VGGTOmegaInt8
from vggt_int8.embedded import EMBEDDED_MODELS, embedded_name, resolve_source
from vggt_int8.pretrained.names import plain_names
from vggt_int8.saves.base import Base, base_in, base_of

INDEX = "model.safetensors.index.json"
State = dict[str, Tensor]

NO_SOURCES = [
    ("./nothing", "there is no folder './nothing'.*'embedded' names the small model"),
    ("nothing", "there is no folder 'nothing'"),
    ("nothing/", "there is no folder 'nothing/'"),
    ("here/nothing", "though 'here' is one; the Hub is not asked"),
    ("a/b/c", "there is no folder"),
    ("C:\\models\\vggt", "there is no folder"),
    ("~/nothing-of-that-name", "there is no folder"),
    ("owner name/model", "cannot be a Hub id"),
    ("owner/model--x..y", "cannot be a Hub id"),
    ("here/weights.safetensors", "there is no file"),
    ("https://hub.example/facebook/VGGT-1B/tree/main", "is an address; pass the model's name, 'facebook/VGGT-1B'"),
    ("around", "no config.json in 'around'.*; 'around/inner' has one"),
    ("public", "no config.json in 'public'.*; single files of weights are named themselves: public/omega_512.pt"),
    ("dangling", "is a link to gone, which does not exist"),
]


@pytest.mark.parametrize(("source", "message"), NO_SOURCES)
def test_a_path_that_is_not_there_is_not_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "around" / "inner").mkdir(parents=True)
    (tmp_path / "around" / "inner" / "config.json").write_text("{}")
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "omega_512.pt").touch()
    (tmp_path / "dangling").symlink_to("gone")

    def no_network(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network is asked")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(CheckpointError, match=message):
        VGGTInt8.from_pretrained(source)


@pytest.mark.parametrize("source", [None, 5, "", ["a"]])
def test_what_names_no_model(source: Any) -> None:
    with pytest.raises(TypeError, match="names no model"):
        VGGTInt8.from_pretrained(source)


@pytest.mark.parametrize("name", EMBEDDED_MODELS)
def test_an_embedded_model_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    folder = str(EMBEDDED_MODELS[name])
    assert resolve_source(name) == folder
    assert embedded_name(folder) == name
    assert embedded_name(name) is None
    (tmp_path / name).mkdir()
    with pytest.warns(UserWarning, match=rf"the folder of that name here is './{name}'"):
        assert resolve_source(name) == folder
    assert resolve_source(f"./{name}") == f"./{name}"
    assert resolve_source(Path(name)) == name
    assert base_of(name, None) == base_of(folder, None) == base_in({"base_model": {"id": name}}) == Base(name)


def test_the_embedded_model_is_loaded_and_named() -> None:
    model = VGGTInt8.from_pretrained("embedded", recipe="int8_dynamic", enable_point=False, verify=True)
    assert model.config.name_or_path == "embedded"
    assert model.config.base_model == {"id": "embedded"}
    assert type(VGGT.from_pretrained("embedded", enable_point=False, verify=True)) is VGGT


def test_the_embedded_omega_is_loaded_and_named() -> None:
    model = VGGTOmegaInt8.from_pretrained("embedded-omega", recipe="int8_dynamic", verify=True)
    assert model.config.name_or_path == "embedded-omega"
    assert model.config.base_model == {"id": "embedded-omega"}
    with pytest.raises(ValueError, match="its model_type is 'vggt_omega', not 'vggt'"):
        VGGTInt8.from_pretrained("embedded-omega")


@pytest.mark.slow
def test_a_single_file_of_a_quantized_folder(tmp_path: Path, bare_int8: Path, bare_checkpoint: Path) -> None:
    whole = VGGTInt8.from_pretrained(bare_int8)
    file = bare_int8 / "model.safetensors"
    assert_same_state(VGGTInt8.from_pretrained(file), whole)
    assert_same_state(VGGTInt8.from_pretrained(file, config=VGGTConfig.from_pretrained(bare_checkpoint)), whole)
    for config in (None, VGGTConfig.from_pretrained(bare_checkpoint)):
        with pytest.raises(CheckpointError, match="is quantized already, by recipe 'int8_dynamic': load it without"):
            VGGTInt8.from_pretrained(file, recipe="int8_dynamic", config=config)
    shutil.copy(file, tmp_path / "mine.safetensors")
    for keywords in ({}, {"recipe": "int8_dynamic"}, {"config": VGGTConfig.from_pretrained(bare_checkpoint)}):
        with pytest.raises(CheckpointError, match=r"holds INT8 codes, but the config\.json .* is not beside it"):
            VGGTInt8.from_pretrained(tmp_path / "mine.safetensors", **keywords)
    shutil.copy(bare_int8 / "config.json", tmp_path)
    assert_same_state(VGGTInt8.from_pretrained(tmp_path / "mine.safetensors"), whole)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS, .*git lfs pull"),
        (b"PK\x03\x04" + b"\0" * 60, r"a zip archive, as torch\.save writes"),
        (b"\x80\x02}q\0." + b"\0" * 60, r"a pickle: give it a name that ends in \.pt"),
        (b"\x1f\x8b\x08" + b"\0" * 60, "compressed by gzip"),
        (b"<!doctype html><html></html>", "a web page"),
        (b"\0" * 100, "truncated or damaged"),
    ],
    ids=["lfs", "zip", "pickle", "gzip", "page", "damaged"],
)
def test_whole_files_of_other_kinds_are_not_said_to_be_damaged(
    tmp_path: Path, bare_checkpoint: Path, content: bytes, message: str
) -> None:
    shutil.copy(bare_checkpoint / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        VGGTInt8.from_pretrained(tmp_path)


def test_a_single_file_has_no_variants(bare_checkpoint: Path) -> None:
    for name in ("variant", "subfolder"):
        with pytest.raises(TypeError, match=f"{name}='fp16' chooses among files"):
            VGGTInt8.from_pretrained(bare_checkpoint / "model.safetensors", **{name: "fp16"})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "unknown kind; .* or a folder, such as"),
        ("notes.txt", "unknown kind"),
        ("model-00001-of-00003.safetensors", "one of several files of a checkpoint: pass their folder"),
    ],
)
def test_single_files_that_are_no_checkpoint(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=message):
        VGGTInt8.from_pretrained(tmp_path / name)


def prefixed(prefix: str) -> Callable[[State], dict[str, Any]]:
    return lambda state: {f"{prefix}{name}": tensor for name, tensor in state.items()}


WRAPPED: list[tuple[str, Callable[[State], dict[str, Any]]]] = [
    ("of DDP", prefixed("module.")),
    ("compiled", prefixed("_orig_mod.")),
    ("DDP, then compiled", prefixed("_orig_mod.module.")),
    ("compiled, then DDP", prefixed("module._orig_mod.")),
    ("compiled parts", lambda state: {name.replace(".blocks.", ".blocks._orig_mod."): t for name, t in state.items()}),
    ("of Lightning", lambda state: {"state_dict": prefixed("model.")(state), "epoch": 1, "callbacks": {}}),
    ("of a training script", lambda state: {"model": state, "optimizer": {"state": {}}, "step": 3}),
    ("of a script with DDP", lambda state: {"model_state_dict": prefixed("module.")(state)}),
    ("of another attribute", prefixed("net.vggt.")),
]


@pytest.mark.parametrize(("what", "wrap"), WRAPPED, ids=[what for what, _ in WRAPPED])
def test_wrappers_around_a_state_dict_are_taken_off(
    tmp_path: Path, bare_checkpoint: Path, bare_weights: State, what: str, wrap: Callable[[State], dict[str, Any]]
) -> None:
    copy_config(bare_checkpoint, tmp_path)
    content = wrap(bare_weights)
    torch.save(content, tmp_path / "pytorch_model.bin")
    sources = [tmp_path / "pytorch_model.bin", tmp_path]  # by itself; as the weights of a folder
    if all(isinstance(value, Tensor) for value in content.values()):
        (tmp_path / "safe").mkdir()
        copy_config(bare_checkpoint, tmp_path / "safe")
        save_file(content, tmp_path / "safe" / "model.safetensors", metadata={"format": "pt"})
        sources.append(tmp_path / "safe")
    want = {name: tensor for name, tensor in bare_weights.items() if not name.startswith("depth_head.")}
    for source in sources:
        got = VGGTInt8.from_pretrained(source, enable_depth=False).state_dict()
        assert got.keys() == want.keys()
        assert all(torch.equal(tensor, got[name]) for name, tensor in want.items())


def test_a_prefixed_checkpoint_is_quantized_like_any_other(
    tmp_path: Path, bare_weights: State, bare_checkpoint: Path
) -> None:
    copy_config(bare_checkpoint, tmp_path)
    save_file(prefixed("module.")(bare_weights), tmp_path / "model.safetensors", metadata={"format": "pt"})
    want = VGGTInt8.from_pretrained(bare_checkpoint, recipe="int8_dynamic")
    assert getattr(want.config, "base_model", None) is None  # a folder's name says nothing to others
    assert_same_state(VGGTInt8.from_pretrained(tmp_path, recipe="int8_dynamic"), want)
    file = VGGTInt8.from_pretrained(tmp_path / "model.safetensors", recipe="int8_dynamic")
    assert file.config.base_model == {"file": "model.safetensors"}
    assert_same_state(AutoModel.from_pretrained(tmp_path, recipe="int8_dynamic"), want)


SPARSE = "aggregator.camera_token"


class Harmless:
    """What a pickle with code in it holds; this code would do nothing."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


UNDECIDED: list[tuple[str, Callable[[State], Any], str]] = [
    (
        "two networks",
        lambda s: prefixed("model.")(s) | prefixed("ema.")(s),
        r"more than one network \(\d+ below 'ema\.'",
    ),
    (
        "a loss beside",
        lambda s: prefixed("model.")(s) | {"loss.w": torch.ones(1)},
        r"below 'model\.', but .* 'loss\.w'",
    ),
    ("half wrapped", lambda s: s | {"module.aggregator.x": torch.ones(1)}, "more than one network"),
    ("one name twice", lambda s: s | {"_orig_mod.aggregator.camera_token": torch.ones(1)}, "are both the network's"),
    ("two state dicts", lambda s: {"state_dict": s, "model": s}, "state dicts under 'state_dict' and 'model'"),
    ("two levels", lambda s: {"checkpoint": {"state_dict": s}}, r"no state dict \(has a dict under 'checkpoint'\)"),
    ("nothing", lambda s: {}, r"no state dict \(is empty\)"),
    ("a number for a name", lambda s: {1: torch.ones(1)}, r"no state dict \(has a Tensor under 1\)"),
    ("a sparse tensor", lambda s: s | {SPARSE: s[SPARSE].to_sparse()}, r"token is stored as F16 \(torch.sparse_coo\)"),
    ("no data", lambda s: s | {SPARSE: s[SPARSE].to("meta")}, r"token is stored as F16 \(no data\)"),
    ("code that is blocked", lambda s: s | {"x": Harmless()}, "it holds other objects"),
]


@pytest.mark.parametrize(("what", "make", "message"), UNDECIDED, ids=[row[0] for row in UNDECIDED])
def test_what_cannot_be_decided_is_said(
    tmp_path: Path,
    bare_checkpoint: Path,
    bare_weights: State,
    what: str,
    make: Callable[[State], Any],
    message: str,
) -> None:
    copy_config(bare_checkpoint, tmp_path)
    torch.save(make(bare_weights), tmp_path / "pytorch_model.bin")
    for source in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(CheckpointError, match=message):
            VGGTInt8.from_pretrained(source)


def test_averaged_weights_beside_the_others_are_told(
    tmp_path: Path, bare_checkpoint: Path, bare_weights: State
) -> None:
    copy_config(bare_checkpoint, tmp_path)
    torch.save({"model": bare_weights, "ema": bare_weights, "optimizer": {"a": torch.ones(1)}}, tmp_path / "w.pt")
    with pytest.warns(UserWarning, match="under 'model' is loaded; under 'ema' there is"):
        VGGTInt8.from_pretrained(tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"no file named model.safetensors; it holds w\.pt: pass the path"):
        VGGTInt8.from_pretrained(tmp_path)


def test_archives_that_hold_no_tensors_are_not_said_to_be_damaged(tmp_path: Path, bare_checkpoint: Path) -> None:
    copy_config(bare_checkpoint, tmp_path)
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("code.py", "raise SystemExit")
    torch.jit.trace(torch.nn.Identity(), torch.ones(1)).save(tmp_path / "script.pt")
    for name, message in {"zip": "a zip archive, but none that torch.save wrote", "script": "TorchScript"}.items():
        with pytest.raises(CheckpointError, match=message):
            VGGTInt8.from_pretrained(tmp_path / f"{name}.pt")


def test_a_pipe_beside_a_single_file_is_no_config(tmp_path: Path, bare_checkpoint: Path) -> None:
    shutil.copy(bare_checkpoint / "model.safetensors", tmp_path)
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json is a pipe"):
        VGGTInt8.from_pretrained(tmp_path / "model.safetensors")


def test_names_without_a_network_stay() -> None:
    assert plain_names(["head.weight", "module.x"]) == {"head.weight": "head.weight", "module.x": "module.x"}
