"""A checkpoint's config.json decides nothing but sizes and recipe: rows, and a hundred damaged ones.

More of the latter: `VGGT_INT8_TEST_CONFIGS=5000 pytest tests/pretrained/test_damaged_configs.py`.
"""

import copy
import json
import os
import random
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vggt_int8 import CheckpointError, RecipeError, VGGTConfig, VGGTInt8
from vggt_int8.model.size import least_parameters
from vggt_int8.model.vggt import VGGT

COUNT = int(os.environ.get("VGGT_INT8_TEST_CONFIGS", "100"))
SECONDS = 10.0  # for one config; the slowest takes less than one on an idle machine
GIBIBYTE = 2**30


@pytest.fixture
def checkpoint(tmp_path: Path, bare_int8: Path) -> Callable[[bytes], Path]:
    """A folder with the golden network's INT8 weights and the config.json given."""
    shutil.copytree(bare_int8, tmp_path / "checkpoint")

    def write(text: bytes) -> Path:
        (tmp_path / "checkpoint" / "config.json").write_bytes(text)
        return tmp_path / "checkpoint"

    return write


@pytest.fixture(scope="module")
def sound(bare_int8: Path) -> dict[str, Any]:
    return json.loads((bare_int8 / "config.json").read_text())


SIZES: list[tuple[dict[str, Any], str]] = [
    ({"depth": 10**6}, "depth must be at most 256, got 1000000"),
    ({"encoder_depth": 257}, "encoder_depth must be at most 256"),
    ({"camera_depth": 10**4}, "camera_depth must be at most 64"),
    ({"camera_iterations": 10**9}, "camera_iterations must be at most 64"),
    ({"track_iterations": 10**9}, "track_iterations must be at most 64"),
    ({"track_corr_levels": 10**5}, "track_corr_levels must be at most 16"),
    ({"track_corr_radius": 10**5}, "track_corr_radius must be at most 64"),
    ({"num_register_tokens": 10**9}, "num_register_tokens must be at most 4096"),
    ({"img_size": 14 * 10**8}, "img_size must be at most 16384"),
    ({"embed_dim": 2**40}, "embed_dim must be at most 32768"),
    ({"embed_dim": 10**4000}, "embed_dim must be at most 32768"),
    ({"embed_dim": 32768, "depth": 256, "dpt_layers": [0, 1, 2, 3]}, "make 6.68e.12 parameters"),
    ({"mlp_ratio": 1e300}, "mlp_ratio must be at most 64"),
    ({"rope_freq": 1e300}, "rope_freq must be at most"),
    ({"dpt_features": 2**20}, "dpt_features must be at most 16384"),
    ({"dpt_out_channels": [2**20] * 4}, "dpt_out_channels must be at most 16384"),
    ({"dpt_out_channels": [8] * 10**5}, r"dpt_out_channels must have 4 entries, .* \[8, 8, .*\.\.\."),
    ({"dpt_layers": []}, "dpt_layers must have 4 entries"),
    ({"dpt_layers": [0, 1, 1, -1]}, r"dpt_layers must lie in 0"),
    ({"depth": True}, "expected int, got bool"),
    ({"depth": "2"}, "expected int, got str"),
    ({"depth": 2.0}, "expected int, got float"),
    ({"depth": -1}, "depth must be at least 1, got -1"),
    ({"depth": None}, "expected int"),
    ({"depth": [2]}, "expected int, got list"),
    ({"enable_track": 0}, "expected bool, got int"),
    ({"dpt_layers": {"a": 1}}, "expected a list|Invalid"),
    ({"embed_dim": 512}, "belongs to other weights"),
    ({"encoder_dpeth": 2}, "a field 'encoder_dpeth', which no VGGT has; 'encoder_depth' is one"),
    ({"model_type": "llama"}, "model_type is 'llama', not 'vggt'"),
    ({"model_type": ["vggt"]}, r"model_type is \['vggt'\]"),
    ({"dtype": "nn"}, "dtype is 'nn', which is no floating-point dtype"),
    ({"dtype": 5}, "dtype is 5, which is no"),
    ({"torch_dtype": "int8"}, "torch_dtype is 'int8', which is no"),
    ({"quantization_config": "int8"}, "quantization_config is 'int8'"),
    ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "quantized by 'bitsandbytes'"),
]


@pytest.mark.parametrize(("change", "message"), SIZES, ids=[f"{str(row[0])[:40]}" for row in SIZES])
def test_absurd_values_are_refused_before_anything_is_built(
    checkpoint: Callable[[bytes], Path],
    sound: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    message: str,
) -> None:
    def built(*_: Any, **__: Any) -> None:
        raise AssertionError("a network was built")

    monkeypatch.setattr(VGGT, "__init__", built)
    with pytest.raises(CheckpointError, match=message) as caught:
        VGGTInt8.from_pretrained(checkpoint(json.dumps({**sound, **change}).encode()))
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 200_000, "nested too deep"),
        (b'{"a":' * 200_000 + b"1" + b"}" * 200_000, "nested too deep"),
        (b'{"quantization_config": ' + b"[" * 450 + b"]" * 450 + b"}", "nested too deep"),
        (b'{"depth": 4, "depth": 2}', "the key 'depth' is in one object twice"),
        (b'{"depth": 1' + b"0" * 10_000 + b"}", "not a valid JSON file"),
        (b'{"rope_freq": NaN}', "NaN is no JSON"),
        (b'{"rope_freq": -Infinity}', "-Infinity is no JSON"),
        (b" " * (17 * 1024 * 1024), "has 17825792 bytes"),
        (b"\xff\xfe\x00", "not a valid JSON file"),
        (b"", "not a valid JSON file"),
        (b"null", "not an object"),
        (b'"text"', "not an object"),
    ],
    ids=[
        "deep list",
        "deep object",
        "deep value",
        "duplicate",
        "digits",
        "NaN",
        "infinity",
        "huge",
        "bytes",
        "empty",
        "null",
        "text",
    ],
)
def test_a_file_that_is_no_config(checkpoint: Callable[[bytes], Path], text: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        VGGTInt8.from_pretrained(checkpoint(text))
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


NAMES_CODE: list[dict[str, Any]] = [
    {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}},
    {"auto_map": {"AutoModel": "someone/repository--evil.Model"}},
    {"attn_implementation": "someone/kernel"},
    {"_attn_implementation": "someone/kernel"},
    {"_attn_implementation_internal": "someone/kernel"},
    {"_experts_implementation_internal": "someone/kernel"},
    {"experts_implementation": "someone/kernel"},
    {"use_kernels": True, "kernel_config": {"a": "b"}},
    {"custom_pipelines": {"a": {"impl": "evil.Pipeline"}}},
    {"transformers_weights": "evil.safetensors"},
    {"transformers_weights": "../evil.safetensors"},
    {"fusion_config": {"patch_embeddings": True}},
    {"distributed_config": {"tp_size": 8}},
    {"base_model_tp_plan": {"aggregator": "colwise"}},
    {"tie_word_embeddings": True},
    {"per_layer_config": {"0": {"x": 1}}},
    {"name_or_path": "../evil", "_name_or_path": "someone/else"},
    {"base_model": 5},
    {"id2label": 5, "num_labels": "x", "problem_type": "single_label_classification"},
    {"forward": "evil", "__class__": "evil", "to_dict": 1, "validate_sizes": 1},
]


@pytest.mark.filterwarnings("ignore:fields of config.json that no VGGT reads")
@pytest.mark.parametrize("change", NAMES_CODE, ids=[next(iter(change)) for change in NAMES_CODE])
def test_a_config_names_no_code(
    checkpoint: Callable[[bytes], Path], sound: dict[str, Any], monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    """It loads as if the field were not there: nothing is imported, nothing is asked of the network."""
    import socket

    def no_network(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network is asked")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    folder = checkpoint(json.dumps({**sound, **change}).encode())
    for file in ("evil.py", "configuration.py", "modeling.py"):
        (folder / file).write_text("raise SystemExit('code of a checkpoint ran')")
    model = VGGTInt8.from_pretrained(folder)
    assert model.config._attn_implementation in (None, "sdpa", "eager")
    assert not hasattr(model.config, "auto_map")
    assert model.config.name_or_path == str(folder)


def test_fields_that_are_left_out_are_named(checkpoint: Callable[[bytes], Path], sound: dict[str, Any]) -> None:
    folder = checkpoint(json.dumps({**sound, "auto_map": {}, "somebodys_own": 1}).encode())
    with pytest.warns(UserWarning, match="no VGGT reads are ignored: 'auto_map', 'somebodys_own'"):
        VGGTInt8.from_pretrained(folder)


RECIPES: list[tuple[dict[str, Any], str]] = [
    ({}, "must hold the whole recipe|holds no recipe"),
    ({"name": "x"}, "holds no recipe"),
    ({"include": ["(a+)+(?=b)"]}, "look-around"),
    ({"rules": [{"match": "(.?){300}"}] * 20}, "too large together"),
    ({"rules": [{"match": ".*"}] * 10**5}, "too large together"),
    ({"rules": "x"}, "rules must be a list"),
    ({"rules": [5]}, "a rule must be a table"),
    ({"rules": "x" * 5000}, "rules must be a list"),
    ({"rules": ["x" * 5000]}, "a rule must be a table"),
    ({"rules": [{"match": "x" * 5000}]}, "5000 characters"),
    ({"rules": [{"match": "x", "part": ["x" * 5000]}]}, "part is"),
    ({"rules": [{"match": "x", "x" * 5000: 1}]}, "unknown key"),
    ({"x" * 5000: 1}, "unknown key"),
    ({"weights": "x" * 5000}, "weights is"),
    ({"weights": "int8", "name": "x" * 5000}, "name is 'xxx"),
    ({"weights": "int8", "name": "\x1b[31m"}, "name is .* printable characters"),
    ({"weights": "int8", "vggt_1b": {"x" * 5000: "x"}}, "vggt_1b is"),
    ({"weights": "int8", "include": 5}, "include is 5; it must be a list"),
    ({"weights": "int8", "include": [["x" * 5000]]}, "include: .* is no regular expression"),
    ({"weights": {"a": 1}}, "weights is"),
    ({"outlier_threshold": True, "weights": "int8"}, "must be a number"),
    ({"calibration_samples": 10.5, "weights": "int8"}, "must be an integer"),
    ({"format": True, "weights": "int8"}, "recipe format True"),
]


@pytest.mark.parametrize(("recipe", "message"), RECIPES, ids=[str(row[0])[:40] for row in RECIPES])
def test_a_stored_recipe_is_checked(
    checkpoint: Callable[[bytes], Path], sound: dict[str, Any], recipe: dict[str, Any], message: str
) -> None:
    data = copy.deepcopy(sound)
    data["quantization_config"]["recipe"] = recipe
    start = time.process_time()
    with pytest.raises((CheckpointError, RecipeError), match=message) as caught:
        VGGTInt8.from_pretrained(checkpoint(json.dumps(data).encode()))
    assert time.process_time() - start < SECONDS
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("pattern", ["(a+)+b", "(.*)*#", ".*" * 50 + "#"])
def test_a_stored_pattern_cannot_run_for_minutes(
    checkpoint: Callable[[bytes], Path], sound: dict[str, Any], pattern: str
) -> None:
    data = copy.deepcopy(sound)
    data["quantization_config"]["recipe"]["rules"].insert(0, {"match": pattern})
    start = time.process_time()
    with pytest.raises(RecipeError, match="decides no layer"):
        VGGTInt8.from_pretrained(checkpoint(json.dumps(data).encode()))
    assert time.process_time() - start < SECONDS


def test_the_estimate_of_parameters(tiny_sizes: dict[str, object]) -> None:
    configs = [
        VGGTConfig(),
        VGGTConfig(**tiny_sizes),
        VGGTConfig(enable_track=False, enable_camera=False, mlp_ratio=2.5),
    ]  # type: ignore[arg-type]
    for config in configs:
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in VGGT(config).parameters())
        assert 0.95 * count < least_parameters(config) <= count


# What a field may turn into.
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 255, 256, 10**6, 10**9, 2**31, 2**63, 10**30, -(10**30)),
    *(0.5, 1e300, -1e300, 1e-300, "", "x", "8", "a/b", "../x", "x" * 5000, [], {}, [1], [[]], {"a": {"b": []}}),
    *([0, 1, 2, 3], [8, 8, 8, 8], [10**9] * 4, ["a"] * 4, [None] * 4, [2**40] * 4, [1.5] * 4, list(range(1000))),
    *(".*", "(a+)+$", "(.?){200}", "int8", "keep", "float16", "vggt_int8", {"match": ".*"}, [{"match": "(a|a)*#"}]),
]


def damaged(sound: dict[str, Any], rng: random.Random) -> bytes:
    """A sound config with one to four values, keys, or bytes of its text replaced."""
    data = copy.deepcopy(sound)
    for _ in range(rng.randint(1, 4)):
        place: Any = data
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = rng.choice(keys)
            deeper = isinstance(place[key], dict | list) and place[key] and rng.random() < 0.6
            if not deeper:
                break
            place = place[key]
        action = rng.random()
        if action < 0.7:
            place[key] = copy.deepcopy(rng.choice(VALUES))
        elif action < 0.8 and isinstance(place, dict):
            place[rng.choice(["auto_map", "depth", "rules", "x", str(key) + "_", "dtype", "backend"])] = place.pop(key)
        elif isinstance(place[key], int) and not isinstance(place[key], bool):
            place[key] *= rng.choice([2, 3, 16, 1024])
        else:
            del place[key]
    text = bytearray(json.dumps(data).encode())
    if rng.random() < 0.15:
        for _ in range(rng.randint(1, 3)):
            text[rng.randrange(len(text))] = rng.randrange(256)
    return bytes(text)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(60 + COUNT * 4)
def test_damaged_configs_end_in_one_clear_error(checkpoint: Callable[[bytes], Path], sound: dict[str, Any]) -> None:
    """Or they load: damage may hit what does not matter. Memory may grow by a fraction of a gibibyte in all."""
    rng = random.Random(17)
    longest, refused, before = 0, 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(COUNT):
        text = damaged(sound, rng)
        start = time.process_time()
        try:
            VGGTInt8.from_pretrained(checkpoint(text))
        except (CheckpointError, RecipeError) as error:
            refused += 1
            longest = max(longest, len(str(error)))
        except Exception as error:
            raise AssertionError(f"config {number} ends in {type(error).__name__}: {text!r}") from error
        assert time.process_time() - start < SECONDS, (number, text)
    assert refused > COUNT / 2
    assert longest < 2000
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < GIBIBYTE, f"{grown / 2**20:.1f} GiB"
