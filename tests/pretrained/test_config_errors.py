"""What is wrong with a config is one ValueError that names field and value: of the plain network, and made by hand."""

import json
import os
import shutil
import socket
import warnings
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, PreTrainedConfig

from vggt_int8 import CheckpointError, VGGTConfig
from vggt_int8.embedded import EMBEDDED_FOLDER
from vggt_int8.model.vggt import VGGT

PLAIN: list[tuple[bytes, str]] = [
    (b"[" * 200_000, "nested too deep"),
    (b'{"depth": ' + b"[" * 450 + b"]" * 450 + b"}", "nested too deep"),
    (b'{"depth": 1' + b"0" * 10_000 + b"}", "config.json in .* is not a valid JSON file: Exceeds the limit"),
    (b'{"depth": 1', "config.json in .* is not a valid JSON file"),
    (b'{"depth": "2"}', r"^Field 'depth' expected int, got str \(value: '2'\)$"),
    (b'{"dpt_layers": [1, 2, "x", 3]}', "Invalid item at index 2 in list 'dpt_layers': .* 'x'"),
    (b'{"depth": 0}', "^depth must be at least 1, got 0$"),
    (b'{"dtype": "nn"}', "dtype is 'nn', which is no"),
    (b'{"embed_dim": 8192}', "belongs to other weights"),
    (b'{"embed_dim": 64}', "does not fit the network"),
]


@pytest.mark.parametrize(("text", "message"), PLAIN, ids=[str(row[0])[:24] for row in PLAIN])
def test_the_plain_network_says_it_in_one_line(
    tmp_path: Path, bare_checkpoint: Path, text: bytes, message: str
) -> None:
    shutil.copytree(bare_checkpoint, tmp_path / "plain")
    if text.startswith(b'{"embed_dim"'):
        text = json.dumps({**json.loads((tmp_path / "plain/config.json").read_text()), **json.loads(text)}).encode()
    (tmp_path / "plain/config.json").write_bytes(text)
    with pytest.raises(ValueError, match=message) as caught:
        VGGT.from_pretrained(tmp_path / "plain")
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_the_plain_network_waits_for_no_pipe(tmp_path: Path, bare_checkpoint: Path, name: str) -> None:
    shutil.copytree(bare_checkpoint, tmp_path / "plain")
    (tmp_path / "plain" / name).unlink()
    os.mkfifo(tmp_path / "plain" / name)
    with pytest.raises(ValueError, match="is a pipe, not a file"):
        VGGT.from_pretrained(tmp_path / "plain")


INDICES: list[tuple[dict[str, Any], str]] = [
    ({"metadata": {}, "weight_map": {"a": "/dev/zero"}}, "names '/dev/zero', which is no file of its folder"),
    ({"metadata": {}, "weight_map": {"a": "../x.safetensors"}}, "which is no file of its folder"),
    ({"metadata": {}, "weight_map": {"a": "gone.safetensors"}}, "there is no file .*gone"),
    ({"metadata": {}, "weight_map": {"a": "pipe.safetensors"}}, "is a pipe, not a file"),
    ({"metadata": {}, "weight_map": {}}, "has no weight_map"),
    ({"weight_map": {"a": "b"}}, "has no metadata"),
]


@pytest.mark.parametrize(("index", "message"), INDICES, ids=[str(row[0])[-40:] for row in INDICES])
def test_the_plain_network_reads_no_files_of_others(
    tmp_path: Path, bare_checkpoint: Path, index: dict[str, Any], message: str
) -> None:
    shutil.copy(bare_checkpoint / "config.json", tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(ValueError, match=message):
        VGGT.from_pretrained(tmp_path)


@pytest.mark.parametrize("source", ["nowhere", "./nowhere", "model.safetensors", "a/b/c", "~/nowhere"])
def test_the_plain_network_asks_the_hub_for_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    def no_network(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network is asked")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(ValueError, match=r"there is no (folder|file)"):
        VGGT.from_pretrained(source)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"depth": "2"}, ValueError, r"^Field 'depth' expected int, got str \(value: '2'\)$"),
        ({"rope_freq": "none"}, ValueError, "'rope_freq' with value 'none'"),
        ({"mlp_ratio": float("nan")}, ValueError, "mlp_ratio must be above 0, got nan"),
        ({"depth": 10**5000}, ValueError, "depth must be at most 256, got a number of"),
        ({"depth": nested(3000)}, ValueError, "nested too deep|'depth' expected int, got list"),  # by Python's version
        ({"embed_dim": "x" * 5000}, ValueError, "'embed_dim' expected int, got str"),
        ({"dtype": "\ud800"}, ValueError, "which is no floating-point dtype"),
        ({"dtype": "float8"}, ValueError, "which is no floating-point dtype"),
        ({"encoder_dpeth": 2}, TypeError, "no field 'encoder_dpeth'; did you mean encoder_depth="),
        ({"quality": 2}, TypeError, "no field 'quality'; it has img_size, "),
        ({"to_dict": 2}, TypeError, "no field 'to_dict'"),
        ({"id2label": "x"}, (TypeError, ValueError), "ield 'id2label'.*'x'"),  # refused by some transformers itself
        ({"id2label": {"a": "b"}}, TypeError, "no field 'id2label'"),
        ({"num_labels": [1]}, TypeError, "no field 'num_labels'"),
        ({"per_layer_config": "x"}, TypeError, "no field 'per_layer_config'"),
        ({"rope_scaling": 5}, TypeError, "no field 'rope_scaling'"),
        ({"attribute_map": 5}, TypeError, "no field 'attribute_map'"),
        ({"sub_configs": "x"}, TypeError, "no field 'sub_configs'"),
        ({"return_dict": False}, TypeError, "no field 'return_dict'"),
        ({"output_hidden_states": True}, TypeError, "no field 'output_hidden_states'"),
        ({"model_type": "bert"}, ValueError, "its model_type is 'bert', not 'vggt'"),
    ],
    ids=lambda value: str(next(iter(value)))[:20] if isinstance(value, dict) else "",
)
def test_a_config_made_by_hand(keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        VGGTConfig(**keywords)
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


def test_a_field_that_is_set_later_is_checked_as_well() -> None:
    config = VGGTConfig()
    with pytest.raises(ValueError, match="'depth' expected int"):
        config.depth = "x"  # type: ignore[assignment]
    assert VGGTConfig(**config.to_dict()).to_dict() == config.to_dict()


WRONG_KINDS = ("x", 5, [1], {"a": "b"}, True, -1.5)
# Those of a config.json that are read as well, its model_type and dtype, are in the tests above.
THEIR_FIELDS = {
    *(name for name in dir(PreTrainedConfig) if not name.startswith("__")),
    *PreTrainedConfig().to_dict(),
    *("auto_map", "pruned_heads", "rope_scaling", "task_specific_params", "text_config", "transformers_weights"),
} - {"model_type", "dtype", "torch_dtype"}


@pytest.mark.parametrize("name", sorted(THEIR_FIELDS))
def test_fields_of_transformers_in_a_file_have_no_say_whatever_they_are(tmp_path: Path, name: str) -> None:
    for value in WRONG_KINDS:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "vggt", "depth": 24, name: value}))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # AutoConfig reads auto_map by itself, before it knows whose config it is.
            ways = [VGGTConfig.from_pretrained, *([AutoConfig.from_pretrained] if name != "auto_map" else [])]
            for read in ways:
                assert {**read(tmp_path).to_dict(), "_name_or_path": ""} == VGGTConfig().to_dict()


def test_a_config_is_made_of_its_own_dict() -> None:
    own = VGGTConfig(depth=24, dtype="bfloat16")
    assert VGGTConfig(**own.to_dict()).to_dict() == own.to_dict()


def test_the_config_of_the_embedded_model_has_a_name() -> None:
    assert VGGTConfig.from_pretrained("embedded").img_size == VGGTConfig.from_pretrained(EMBEDDED_FOLDER).img_size


def test_a_config_of_nothing() -> None:
    with pytest.raises(CheckpointError, match=r"there is no folder '\./nothing'"):
        VGGTConfig.from_pretrained("./nothing")
