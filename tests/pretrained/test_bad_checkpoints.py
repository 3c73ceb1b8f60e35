"""Bad checkpoints: each row says what is wrong and what the message must say. Nothing is loaded then."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.pretrained.damage import (
    INDEX,
    Change,
    config,
    cut,
    header,
    overwrite,
    pickled,
    put,
    recipe_key,
    repeat,
    retype,
    second,
    shard_and,
    weights,
)
from vggt_int8 import VGGT, CheckpointError, RecipeError, VGGTInt8

QKV = "aggregator.frame_blocks.1.attn.qkv"
NORM = "aggregator.frame_blocks.1.norm1.weight"
NAN, INF = float("nan"), float("inf")

# Damage that is found alike in a float checkpoint, loaded as it is or quantized, and in an INT8 one.
ANY = [
    ("truncated in its data", cut(0.9), r"model\.safetensors \(\d+ bytes\) is no readable safetensors file.*truncated"),
    ("truncated in its header", cut(0.001), r"model\.safetensors .* is no readable safetensors file"),
    ("zero bytes", overwrite(b""), r"model\.safetensors \(0 bytes\) is no readable safetensors file"),
    ("garbage", overwrite(os.urandom(4096)), r"model\.safetensors \(4096 bytes\) is no readable safetensors file"),
    ("text", overwrite(b"version https://git-lfs.github.com/spec/v1\n"), r"model\.safetensors .* is no readable"),
    ("a missing shard", shard_and(lambda f: second(f).unlink()), r"model-00002-of-00003\.safetensors"),
    ("a truncated shard", shard_and(lambda f: second(f).write_bytes(second(f).read_bytes()[:-9])), r"model-00002-of-0"),
    ("a missing weight", weights(lambda t: t.pop(f"{QKV}.weight")), rf"lacks {QKV}\.weight"),
    ("a missing bias", weights(lambda t: t.pop(f"{QKV}.bias")), rf"lacks {QKV}\.bias"),
    ("a missing norm", weights(lambda t: t.pop(NORM)), rf"lacks {NORM}"),
    ("an extra tensor", weights(lambda t: t.update(spare=torch.ones(2))), "does not have: spare"),
    (
        "a wrong shape",
        weights(lambda t: t.update({NORM: torch.ones(31)})),
        rf"{NORM} has shape \[31\], the model needs \[32\]",
    ),
    (
        "a transposed weight",
        weights(lambda t: t.update({f"{QKV}.weight": t[f"{QKV}.weight"].mT.contiguous()})),
        rf"{QKV}\.weight has shape \[(1, )?32, 96\], the model needs \[(1, )?96, 32\]",
    ),
    ("NaN in a norm", put(NORM, 3, NAN), f"{NORM}|NaN"),
    ("inf in a bias", put(f"{QKV}.bias", 3, INF), rf"{QKV}\.bias"),
    ("integers in a norm", retype(NORM, torch.int32), rf"{NORM} is stored as I32 where float"),
    ("a pickled model", pickled(nn.Linear(2, 2)), r"pytorch_model\.bin cannot be read as plain tensors .*refused"),
    ("a pickle of something else", pickled([1, 2]), r"pytorch_model\.bin holds no state dict"),
    ("a config of another size", config(lambda c: c.update(embed_dim=64)), "has shape"),
    ("a config without JSON", overwrite(b"{", "config.json"), r"cannot read the config\.json in .*not a valid JSON"),
    ("a config that is a list", overwrite(b"[]", "config.json"), r"config\.json of .* describes no VGGT"),
    ("no config", lambda folder: (folder / "config.json").unlink(), r"there is no config\.json in"),
    ("no weights", lambda folder: (folder / "model.safetensors").unlink(), "cannot load .*no file named model"),
    (
        "a damaged index",
        shard_and(lambda f: (f / INDEX).write_text('{"weight_map": ')),
        r"index\.json in .* is not a valid JSON file: Expecting value",
    ),
    ("an index without a map", shard_and(lambda f: (f / INDEX).write_text('{"weight_map": ["a"]}')), "no weight_map"),
    ("an index that is a list", shard_and(lambda f: (f / INDEX).write_text("[1]")), "no weight_map"),
    ("a tensor in two shards", shard_and(repeat), r"is in two files, .*-00001-of-.* and .*-00002-of-"),
    ("an unknown dtype in the config", config(lambda c: c.update(dtype="float7")), r"describes no VGGT.*float7"),
    (
        "an impossible config",
        config(lambda c: c.update(depth=0)),
        r"describes no VGGT(.|\n)*depth must be at least 1, got 0",
    ),
]
FLOAT = [
    ("NaN in a weight", put(f"{QKV}.weight", 7, NAN), rf"{QKV}\.weight|NaN or inf in {QKV}\.weight"),
    ("inf in a weight", put(f"{QKV}.weight", 7, -INF), rf"{QKV}\.weight"),
    ("NaN in a convolution", put("depth_head.projects.0.weight", 0, NAN), r"depth_head\.projects\.0\.weight"),
    ("codes in a float checkpoint", retype(f"{QKV}.weight", torch.int8), rf"{QKV}\.weight is stored as I8 where float"),
]
INT8 = [
    (
        "a float weight where codes belong",
        retype(f"{QKV}.weight", torch.float16),
        rf"{QKV}\.weight is stored as F16 where INT8",
    ),
    ("unsigned codes", retype(f"{QKV}.weight", torch.uint8), rf"{QKV}\.weight is stored as U8 where INT8"),
    ("a code of -128", put(f"{QKV}.weight", 5, -128), rf"codes of -128, .* in {QKV}\.weight"),
    ("an fp32 bias", retype(f"{QKV}.bias", torch.float32), rf"{QKV}\.bias is stored as F32, but .* floats as F16"),
    ("a bf16 norm", retype(NORM, torch.bfloat16), rf"{NORM} is stored as BF16, but .* floats as F16"),
    ("codes where floats belong", retype(NORM, torch.int8), rf"{NORM} is stored as I8 where float"),
    ("a missing scale", weights(lambda t: t.pop(f"{QKV}.weight_scale")), rf"lacks {QKV}\.weight_scale"),
    (
        "an fp16 scale",
        retype(f"{QKV}.weight_scale", torch.float16),
        rf"{QKV}\.weight_scale is stored as F16, but scales must be F32",
    ),
    (
        "a flat scale",
        weights(lambda t: t.update({f"{QKV}.weight_scale": t[f"{QKV}.weight_scale"].view(-1)})),
        rf"{QKV}\.weight_scale has shape \[96\], the model needs \[96, 1\]",
    ),
    ("a NaN scale", put(f"{QKV}.weight_scale", 5, NAN), rf"NaN or inf in {QKV}\.weight_scale"),
    ("an infinite scale", put(f"{QKV}.weight_scale", 5, INF), rf"NaN or inf in {QKV}\.weight_scale"),
    ("a negative scale", put(f"{QKV}.weight_scale", 5, -0.1), rf"not positive in {QKV}\.weight_scale"),
    ("a zero scale", put(f"{QKV}.weight_scale", 5, 0.0), rf"not positive in {QKV}\.weight_scale"),
    (
        "a zero scale of a convolution",
        put("depth_head.projects.0.weight_scale", 5, 0.0),
        r"not positive in depth_head\.projects\.0\.weight_scale",
    ),
    (
        "an input scale in a dynamic recipe",
        weights(lambda t: t.update({f"{QKV}.input_scale": torch.ones(1)})),
        rf"does not have: {QKV}\.input_scale",
    ),
    (
        "a newer format",
        config(lambda c: c["quantization_config"].update(format_version=3)),
        "format_version 3; this vggt-int8 reads 1 and 2. Update",
    ),
    *(
        (
            f"a format of {version!r}",
            config(lambda c, version=version: c["quantization_config"].update(format_version=version)),
            rf"format_version {re.escape(repr(version))}; this vggt-int8 reads 1 and 2",
        )
        for version in (0, True, "2", 2.0, None, [2])
    ),
    (
        "codes of format 1 under format 2",
        weights(lambda t: t.update({f"{QKV}.weight": t[f"{QKV}.weight"][0]})),
        rf"{QKV}\.weight has shape \[96, 32\], the model needs \[1, 96, 32\]",
    ),
    (
        "format 1 over codes of format 2",
        config(lambda c: c["quantization_config"].update(format_version=1)),
        r"has shape \[1, .*\], the model needs \[",
    ),
    ("a huge scale", put(f"{QKV}.weight_scale", 5, 1e9), rf"scales of up to 1e\+09, .* in {QKV}\.weight_scale"),
    (
        "a hole in the codes",
        weights(lambda t: t[f"{QKV}.weight"][0, 3:5].zero_()),
        rf"2 channels of zeros .* in {QKV}\.",
    ),
    (
        "a hole in a convolution",
        weights(lambda t: t["depth_head.resize_layers.0.weight"].zero_()),
        r"channels of zeros whose scale is not 1 in depth_head\.resize_layers\.0\.weight",
    ),
    ("a denormal scale", put(f"{QKV}.weight_scale", 5, 1e-39), rf"denormal scales, .* in {QKV}\.weight_scale"),
    (
        "something of a newer release",
        config(lambda c: c["quantization_config"].update(rotation={"group": 64})),
        "unknown keys in quantization_config: rotation. A newer vggt-int8 may know",
    ),
    (
        "an unknown key",
        config(lambda c: c["quantization_config"].update(group_size=64)),
        "unknown keys in quantization_config: group_size",
    ),
    (
        "no recipe",
        config(lambda c: c["quantization_config"].pop("recipe")),
        "quantization_config must hold the whole recipe, not None",
    ),
    (
        "a recipe by name",
        config(lambda c: c["quantization_config"].update(recipe="int8_dynamic")),
        "must hold the whole recipe, not 'int8_dynamic'",
    ),
    (
        "a quantization_config that is no table",
        config(lambda c: c.update(quantization_config=[1])),
        r"config\.json of .* describes no VGGT",
    ),
    ("a newer recipe", recipe_key("format", 3), "recipe format 3; this package reads 1 and 2"),
    ("a recipe with an unknown key", recipe_key("spin", True), "unknown key 'spin'"),
    ("a recipe that fits another model", recipe_key("rules", [{"match": "nothing"}]), "decides no layer"),
    (
        "a recipe that quantizes less",
        recipe_key("exclude", [r"camera_head\..*"]),
        r"does not have: camera_head\.|is stored as I8",
    ),
    (
        "another quantizer",
        config(lambda c: c["quantization_config"].update(quant_method="gptq")),
        "quantized by 'gptq', which is not supported",
    ),
    ("no quantization_config", config(lambda c: c.pop("quantization_config")), r"does not have: .*weight_scale"),
]


@pytest.fixture
def good(bare_checkpoint: Path, bare_int8: Path) -> dict[str, Path]:
    return {"float": bare_checkpoint, "int8": bare_int8}


ROWS = (
    [("float", None, *row) for row in [*ANY, *FLOAT]]
    + [("float", "int8_dynamic", *row) for row in [*ANY, *FLOAT]]
    + [("int8", None, *row) for row in [*ANY, *INT8]]
)


@pytest.mark.parametrize(
    ("kind", "recipe", "what", "change", "message"), ROWS, ids=[f"{k}-{r}-{w}" for k, r, w, _, _ in ROWS]
)
def test_a_bad_checkpoint_is_refused(
    tmp_path: Path,
    good: dict[str, Path],
    kind: str,
    recipe: str | None,
    what: str,  # shown as the test's name
    change: Change,
    message: str,
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(good[kind], folder)
    change(folder)
    with pytest.raises((CheckpointError, RecipeError), match=message) as caught:
        VGGTInt8.from_pretrained(folder, recipe=recipe)
    assert len(str(caught.value)) < 1500


def test_values_that_the_compute_dtype_does_not_have(tmp_path: Path, bare_checkpoint: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(bare_checkpoint, folder)
    put(NORM, 3, 1e30)(folder)
    with pytest.raises(CheckpointError, match=rf"values in {NORM} are beyond fp16 .*torch\.float32"):
        VGGTInt8.from_pretrained(folder, dtype=torch.float16)
    for dtype in (torch.bfloat16, torch.float32):
        VGGTInt8.from_pretrained(folder, dtype=dtype)


def test_a_name_that_is_none_does_not_fill_the_message(tmp_path: Path, bare_int8: Path) -> None:
    """Somebody's names of tensors may be as long as a header, and hold anything."""
    shutil.copytree(bare_int8, tmp_path / "c")
    file = tmp_path / "c" / "model.safetensors"
    long, control = "x" * 5000, "\x1b[31m\nred"
    save_file(load_file(file) | {long: torch.ones(1), control: torch.ones(1)}, file, metadata=header(file))
    with pytest.raises(CheckpointError, match=r"does not have: .*'\\x1b\[31m\\nred'") as caught:
        VGGTInt8.from_pretrained(tmp_path / "c")
    assert "'xxx" in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("load", [VGGTInt8.from_pretrained, VGGT.from_pretrained], ids=["VGGTInt8", "VGGT"])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_tensor_in_two_files_is_named(tmp_path: Path, bare_checkpoint: Path, load: Any, suffix: str) -> None:
    tensors = load_file(bare_checkpoint / "model.safetensors")
    name, *others = tensors
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    parts = {f"{stem}-1.{suffix}": [name, *others[:9]], f"{stem}-2.{suffix}": [*others[9:], name]}
    for file, names in parts.items():
        part = {key: tensors[key].contiguous() for key in names}
        if suffix == "bin":
            torch.save(part, tmp_path / file)
        else:
            save_file(part, tmp_path / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: file for file, names in parts.items() for key in names}}
    (tmp_path / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    config = json.loads((bare_checkpoint / "config.json").read_text())
    del config["save"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=rf"{name} is in two files, .*-1\.{suffix} and .*-2\.{suffix}: remove one"
    ):
        load(tmp_path)


@pytest.mark.parametrize("load", [VGGTInt8.from_pretrained, VGGT.from_pretrained], ids=["VGGTInt8", "VGGT"])
def test_a_tensor_that_a_header_describes_twice(tmp_path: Path, bare_checkpoint: Path, load: Any) -> None:
    shutil.copytree(bare_checkpoint, tmp_path / "twice")
    file = tmp_path / "twice" / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].rstrip()
    name = next(key for key in json.loads(header) if key != "__metadata__")
    entry = json.dumps({name: json.loads(header)[name]})[1:-1].encode()
    header = header[:-1] + b"," + entry + b"}"
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    with pytest.raises(CheckpointError, match=r"twice/model\.safetensors has a header.*in one object twice"):
        load(tmp_path / "twice")
