"""What is wrong with a config is one ValueError that names field and value: of the plain network, and made by hand."""

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from vggt_int8 import VGGTConfig
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
    tmp_path: Path, tiny_checkpoint: Path, text: bytes, message: str
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "plain")
    if text.startswith(b'{"embed_dim"'):
        text = json.dumps({**json.loads((tmp_path / "plain/config.json").read_text()), **json.loads(text)}).encode()
    (tmp_path / "plain/config.json").write_bytes(text)
    with pytest.raises(ValueError, match=message) as caught:
        VGGT.from_pretrained(tmp_path / "plain")
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_the_plain_network_waits_for_no_pipe(tmp_path: Path, tiny_checkpoint: Path, name: str) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "plain")
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
    tmp_path: Path, tiny_checkpoint: Path, index: dict[str, Any], message: str
) -> None:
    shutil.copy(tiny_checkpoint / "config.json", tmp_path)
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
        ({"depth": nested(3000)}, ValueError, "nested too deep"),
        ({"embed_dim": "x" * 5000}, ValueError, "'embed_dim' expected int, got str"),
        ({"dtype": "\ud800"}, ValueError, "which is no floating-point dtype"),
        ({"dtype": "float8"}, ValueError, "which is no floating-point dtype"),
        ({"encoder_dpeth": 2}, TypeError, "no field 'encoder_dpeth'; did you mean encoder_depth="),
        ({"quality": 2}, TypeError, "no field 'quality'; it has img_size, "),
        ({"to_dict": 2}, TypeError, "no field 'to_dict'"),
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
