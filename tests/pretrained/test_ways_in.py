"""Ways into a model: keywords, names of sources, single files, names of tensors, files of a folder. One row a case."""

import json
import os
import shutil
import socket
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, BitsAndBytesConfig

from tests.other_weights import copy_config
from vggt_int8 import VGGT, CheckpointError, VGGTConfig, VGGTInt8
from vggt_int8.embedded import EMBEDDED_FOLDER, resolve_source
from vggt_int8.model.keywords import check_keywords
from vggt_int8.pretrained.names import plain_names

INDEX = "model.safetensors.index.json"
State = dict[str, Tensor]

REFUSED_KEYWORDS = [
    (
        {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)},
        "_config=<BitsAndBytesConfig>: .*recipe='int8_dyn",
    ),
    (
        {"quantization_config": {"quant_method": "vggt_int8"}, "recipe": "int8_dynamic"},
        "take quantization_config",
    ),
    ({"load_in_8bit": True}, "load_in_8bit=True: INT8 is asked for by recipe="),
    ({"load_in_4bit": True}, "no 4-bit arithmetic"),
    ({"ignore_mismatched_sizes": True}, "must fit the model"),
    ({"strict": False}, "must fit the model"),
    ({"key_mapping": {"^module.": ""}}, "key_mapping=.*taken off by themselves"),
    ({"state_dict": {}}, "state_dict=.*pass its path"),
    ({"use_safetensors": False}, "read where there are any"),
    ({"weights_only": False}, "weights_only=False.*never opened"),
    ({"trust_remote_code": True}, "no code of a checkpoint is ever run"),
    ({"attn_implementation": "flash_attention_2"}, "attention is the network's own"),
    ({"use_kernels": True}, "takes none from the Hub"),
    ({"kernel_config": object()}, "takes none from the Hub"),
    ({"fusion_config": {"patch_embeddings": True}}, "fusion_config="),
    ({"tp_plan": "auto"}, "device_map= puts parts"),
    ({"distributed_config": {}}, "distributed_config="),
    ({"gguf_file": "a.gguf"}, "no VGGT in GGUF"),
    ({"adapter_name": "mine"}, "adapters are not loaded"),
    ({"low_cpu_mem_usage": False}, "streamed in any case"),
    ({"device": "cuda"}, "device_map='cuda'"),
    ({"from_tf": True}, "no longer reads"),
    ({"recipee": "int8_dynamic"}, "does not know recipee=.*did you mean recipe="),
    ({"enable_trak": False}, "did you mean enable_track="),
    ({"devicemap": "cpu"}, "did you mean device_map="),
    ({"output_attentions": True}, "does not know output_attentions="),
    ({"dtype": "float7"}, "dtype is 'float7': choose torch.float16"),
    ({"dtype": torch.int8}, "dtype is torch.int8"),
    ({"dtype": {"": torch.float16}}, "one dtype holds for the whole network"),
    ({"dtype": "fp16", "torch_dtype": "bf16"}, "dtype='fp16' and torch_dtype='bf16' differ"),
    ({"config": 5}, "config is a int; pass a VGGTConfig"),
]


@pytest.mark.parametrize(("keywords", "message"), REFUSED_KEYWORDS, ids=[str(list(row[0])) for row in REFUSED_KEYWORDS])
def test_a_keyword_without_effect_is_refused_before_anything_is_read(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):  # not the error of a source that is not there
        VGGTInt8.from_pretrained("./nothing is here", **keywords)


def test_options_are_given_by_name(tiny_checkpoint: Path) -> None:
    with pytest.raises(TypeError, match="by name, such as recipe='int8_dynamic'"):
        VGGTInt8.from_pretrained(tiny_checkpoint, "int8_dynamic")


@pytest.mark.parametrize(
    "keywords",
    [
        {"load_in_8bit": False, "quantization_config": None, "trust_remote_code": None, "low_cpu_mem_usage": True},
        {"attn_implementation": None, "adapter_kwargs": None, "state_dict": None, "weights_only": True},
    ],
)
def test_keywords_that_ask_for_what_happens_anyway_pass(keywords: dict[str, Any]) -> None:
    assert check_keywords(keywords) == {}


def test_keywords_that_pass_do_what_they_say(tiny_checkpoint: Path) -> None:
    model, info = VGGTInt8.from_pretrained(tiny_checkpoint, output_loading_info=True, dtype="bf16")  # type: ignore[misc]
    assert model.dtype == torch.bfloat16
    assert not info["missing_keys"]
    own = VGGTConfig.from_pretrained(tiny_checkpoint)
    model = VGGTInt8.from_pretrained(tiny_checkpoint, config=own, enable_track=False, use_safetensors=True)
    assert model.track_head is None
    assert own.enable_track, "the caller's object is left alone"


def test_the_same_holds_for_auto_model_and_the_plain_network(tiny_checkpoint: Path, int8_checkpoint: Path) -> None:
    for keywords in ({"load_in_8bit": True}, {"attn_implementation": "a/kernel"}, {"output_hidden_states": True}):
        for load in (AutoModel.from_pretrained, VGGT.from_pretrained):
            with pytest.raises(TypeError, match=next(iter(keywords))):
                load(tiny_checkpoint, **keywords)
    with pytest.raises(TypeError, match="quantization_config="):
        AutoModel.from_pretrained(tiny_checkpoint, quantization_config={"quant_method": "gptq"})
    with pytest.raises(ValueError, match=r"is quantized: load it with VGGTInt8\.from_pretrained"):
        VGGT.from_pretrained(int8_checkpoint)
    with pytest.raises(TypeError, match="takes recipe= and backend="):
        VGGT.from_pretrained(tiny_checkpoint, recipe="int8_dynamic")
    assert type(VGGT.from_pretrained(tiny_checkpoint, enable_track=False)) is VGGT


def test_the_plain_network_tells_of_weights_that_do_not_fit(tmp_path: Path, tiny_checkpoint: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "bad")
    tensors = load_file(tmp_path / "bad" / "model.safetensors")
    del tensors["aggregator.camera_token"]
    save_file(tensors, tmp_path / "bad" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "bad" / "config.json").read_text())
    del config["save"]  # of the tensors that were there
    (tmp_path / "bad" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"does not fit the network: \['aggregator\.camera_token'\]"):
        VGGT.from_pretrained(tmp_path / "bad")


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
    (tmp_path / "dangling").symlink_to("gone")

    def no_network(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network is asked")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=message):
        VGGTInt8.from_pretrained(source)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("source", [None, 5, "", ["a"]])
def test_what_names_no_model(source: Any) -> None:
    with pytest.raises(TypeError, match="names no model"):
        VGGTInt8.from_pretrained(source)


def test_the_embedded_model_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_source("embedded") == str(EMBEDDED_FOLDER)
    (tmp_path / "embedded").mkdir()
    with pytest.warns(UserWarning, match=r"the folder of that name here is './embedded'"):
        assert resolve_source("embedded") == str(EMBEDDED_FOLDER)
    assert resolve_source("./embedded") == "./embedded"
    assert resolve_source(Path("embedded")) == "embedded"


def test_the_embedded_model_is_loaded_and_named() -> None:
    model = VGGTInt8.from_pretrained("embedded", recipe="int8_dynamic", enable_point=False, verify=True)
    assert model.config.name_or_path == "embedded"
    assert type(VGGT.from_pretrained("embedded", enable_point=False, verify=True)) is VGGT


def assert_same_weights(a: torch.nn.Module, b: torch.nn.Module) -> None:
    want, got = a.state_dict(), b.state_dict()
    assert want.keys() == got.keys()
    assert all(torch.equal(tensor, got[name]) for name, tensor in want.items())


def test_a_single_file_of_a_quantized_folder(tmp_path: Path, int8_checkpoint: Path, tiny_checkpoint: Path) -> None:
    whole = VGGTInt8.from_pretrained(int8_checkpoint)
    file = int8_checkpoint / "model.safetensors"
    assert_same_weights(VGGTInt8.from_pretrained(file), whole)
    assert_same_weights(VGGTInt8.from_pretrained(file, config=VGGTConfig.from_pretrained(tiny_checkpoint)), whole)
    for config in (None, VGGTConfig.from_pretrained(tiny_checkpoint)):
        with pytest.raises(CheckpointError, match="is quantized already, by recipe 'int8_dynamic': load it without"):
            VGGTInt8.from_pretrained(file, recipe="int8_dynamic", config=config)
    shutil.copy(file, tmp_path / "mine.safetensors")
    for keywords in ({}, {"recipe": "int8_dynamic"}, {"config": VGGTConfig.from_pretrained(tiny_checkpoint)}):
        with pytest.raises(CheckpointError, match=r"holds INT8 codes, but the config\.json .* is not beside it"):
            VGGTInt8.from_pretrained(tmp_path / "mine.safetensors", **keywords)
    shutil.copy(int8_checkpoint / "config.json", tmp_path)
    assert_same_weights(VGGTInt8.from_pretrained(tmp_path / "mine.safetensors"), whole)


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
    tmp_path: Path, tiny_checkpoint: Path, content: bytes, message: str
) -> None:
    shutil.copy(tiny_checkpoint / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        VGGTInt8.from_pretrained(tmp_path)


def test_a_single_file_has_no_variants(tiny_checkpoint: Path) -> None:
    for name in ("variant", "subfolder"):
        with pytest.raises(TypeError, match=f"{name}='fp16' chooses among files"):
            VGGTInt8.from_pretrained(tiny_checkpoint / "model.safetensors", **{name: "fp16"})


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
    tmp_path: Path, tiny_checkpoint: Path, tiny_weights: State, what: str, wrap: Callable[[State], dict[str, Any]]
) -> None:
    copy_config(tiny_checkpoint, tmp_path)
    content = wrap(tiny_weights)
    torch.save(content, tmp_path / "pytorch_model.bin")
    sources = [tmp_path / "pytorch_model.bin", tmp_path]  # by itself; as the weights of a folder
    if all(isinstance(value, Tensor) for value in content.values()):
        (tmp_path / "safe").mkdir()
        copy_config(tiny_checkpoint, tmp_path / "safe")
        save_file(content, tmp_path / "safe" / "model.safetensors", metadata={"format": "pt"})
        sources.append(tmp_path / "safe")
    want = {name: tensor for name, tensor in tiny_weights.items() if not name.startswith(("track_head", "point_head"))}
    for source in sources:
        got = VGGTInt8.from_pretrained(source, enable_track=False, enable_point=False).state_dict()
        assert got.keys() == want.keys()
        assert all(torch.equal(tensor, got[name]) for name, tensor in want.items())


def test_a_prefixed_checkpoint_is_quantized_like_any_other(
    tmp_path: Path, tiny_weights: State, tiny_checkpoint: Path
) -> None:
    copy_config(tiny_checkpoint, tmp_path)
    save_file(prefixed("module.")(tiny_weights), tmp_path / "model.safetensors", metadata={"format": "pt"})
    want = VGGTInt8.from_pretrained(tiny_checkpoint, recipe="int8_dynamic")
    assert_same_weights(VGGTInt8.from_pretrained(tmp_path, recipe="int8_dynamic"), want)
    assert_same_weights(AutoModel.from_pretrained(tmp_path, recipe="int8_dynamic"), want)


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
    tiny_checkpoint: Path,
    tiny_weights: State,
    what: str,
    make: Callable[[State], Any],
    message: str,
) -> None:
    copy_config(tiny_checkpoint, tmp_path)
    torch.save(make(tiny_weights), tmp_path / "pytorch_model.bin")
    for source in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(CheckpointError, match=message):
            VGGTInt8.from_pretrained(source)


def test_averaged_weights_beside_the_others_are_told(
    tmp_path: Path, tiny_checkpoint: Path, tiny_weights: State
) -> None:
    copy_config(tiny_checkpoint, tmp_path)
    torch.save({"model": tiny_weights, "ema": tiny_weights, "optimizer": {"a": torch.ones(1)}}, tmp_path / "w.pt")
    with pytest.warns(UserWarning, match="under 'model' is loaded; under 'ema' there is"):
        VGGTInt8.from_pretrained(tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"no file named model.safetensors; it holds w\.pt: pass the path"):
        VGGTInt8.from_pretrained(tmp_path)


def test_archives_that_hold_no_tensors_are_not_said_to_be_damaged(tmp_path: Path, tiny_checkpoint: Path) -> None:
    copy_config(tiny_checkpoint, tmp_path)
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("code.py", "raise SystemExit")
    torch.jit.trace(torch.nn.Identity(), torch.ones(1)).save(tmp_path / "script.pt")
    for name, message in {"zip": "a zip archive, but none that torch.save wrote", "script": "TorchScript"}.items():
        with pytest.raises(CheckpointError, match=message):
            VGGTInt8.from_pretrained(tmp_path / f"{name}.pt")


def test_a_pipe_beside_a_single_file_is_no_config(tmp_path: Path, tiny_checkpoint: Path) -> None:
    shutil.copy(tiny_checkpoint / "model.safetensors", tmp_path)
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json is a pipe"):
        VGGTInt8.from_pretrained(tmp_path / "model.safetensors")


def test_names_without_a_network_stay() -> None:
    assert plain_names(["head.weight", "module.x"]) == {"head.weight": "head.weight", "module.x": "module.x"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """The golden network in several files. Read only."""
    folder = tmp_path_factory.mktemp("shards") / "fp32"
    VGGTInt8.from_pretrained(tiny_checkpoint).save_pretrained(folder, max_shard_size="2MB")
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
    tmp_path: Path, shards: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a stand-in for the system's refusal: tests may run as root, to whom nothing is refused."""
    real = os.open

    def refuse(path: Any, *args: Any, **kwargs: Any) -> int:
        if str(path).endswith((".safetensors", "secret/config.json")):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    for source in (tiny_checkpoint, shards, tiny_checkpoint / "model.safetensors"):
        with pytest.raises(CheckpointError, match=r"cannot read .*model.*\.safetensors: Permission denied"):
            VGGTInt8.from_pretrained(source)
    shutil.copytree(tiny_checkpoint, tmp_path / "secret")
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
    assert_same_weights(VGGTInt8.from_pretrained(cached), want)
    assert_same_weights(VGGTInt8.from_pretrained("me/vggt", cache_dir=tmp_path, local_files_only=True), want)


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


def test_a_model_that_is_not_cached_is_said_to_be_so_at_once(tmp_path: Path) -> None:
    start = time.perf_counter()
    with pytest.raises(
        CheckpointError, match=r"the Hub is not asked \(HF_HUB_OFFLINE or local_files_only\).*embedded"
    ) as e:
        VGGTInt8.from_pretrained("me/nothing", cache_dir=tmp_path, local_files_only=True)
    assert time.perf_counter() - start < 5
    assert "'embedded' names the small model" in str(e.value)
    assert "\n" not in str(e.value)


def test_a_linked_file_of_weights_is_read(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "config.json").symlink_to(tiny_checkpoint / "config.json")
    (tmp_path / "model.safetensors").symlink_to(tiny_checkpoint / "model.safetensors")
    assert_same_weights(VGGTInt8.from_pretrained(tmp_path), VGGTInt8.from_pretrained(tiny_checkpoint))
