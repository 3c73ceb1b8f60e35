"""Saving: what is written reloads bit for bit, and an existing checkpoint is replaced whole or not at all."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel

from tests.states import assert_same_state
from vggt_int8 import VGGT, CheckpointError, VGGTInt8, quantize

RECIPES = ["fp16", "int8_dynamic", "int8_weight_only", "llm_int8"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def assert_same_outputs(a: VGGTInt8, b: VGGTInt8, images: Tensor, points: Tensor | None = None) -> None:
    want, got = a(images, query_points=points), b(images, query_points=points)
    assert want.keys() == got.keys()
    for name in want:
        assert torch.equal(want[name], got[name]), name


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_reload_is_bit_exact(
    tmp_path: Path,
    tiny_checkpoint: Path,
    bare_checkpoint: Path,
    tiny_images: Tensor,
    tiny_points: Tensor,
    recipe: str,
    dtype: torch.dtype,
) -> None:
    whole = (recipe, dtype) == ("int8_dynamic", torch.float32)  # heads are saved as any part is
    source, points = (tiny_checkpoint, tiny_points) if whole else (bare_checkpoint, None)
    model = VGGTInt8.from_pretrained(source, recipe=recipe, dtype=dtype)
    model.save_pretrained(tmp_path / "first", max_shard_size="150KB" if dtype == torch.float16 else "5GB")
    again = VGGTInt8.from_pretrained(tmp_path / "first", dtype=dtype)
    assert_same_state(again, model)
    assert_same_outputs(model, again, tiny_images, points)
    again.save_pretrained(tmp_path / "second", max_shard_size="150KB" if dtype == torch.float16 else "5GB")
    assert snapshot(tmp_path / "second") == snapshot(tmp_path / "first")


def test_a_model_quantized_in_memory_reloads_bit_exact(
    tmp_path: Path, make_tiny: Callable[[], VGGTInt8], tiny_images: Tensor, tiny_points: Tensor
) -> None:
    model = quantize(make_tiny(), "int8_dynamic")
    model.save_pretrained(tmp_path / "int8")
    again = VGGTInt8.from_pretrained(tmp_path / "int8")
    assert_same_state(again, model)
    assert_same_outputs(model, again, tiny_images, tiny_points)


def test_the_plain_network_quantized_in_memory_reloads_bit_exact(
    tmp_path: Path, bare_checkpoint: Path, tiny_images: Tensor
) -> None:
    model = quantize(VGGT.from_pretrained(bare_checkpoint, dtype=torch.float32), "int8_dynamic")
    model.save_pretrained(tmp_path / "int8")
    again = VGGTInt8.from_pretrained(tmp_path / "int8")
    assert again.config.quantization_config.parsed().name == "int8_dynamic"
    assert_same_state(again, model)
    again.set_runtime("off")  # a `VGGT` has no other way to run
    assert_same_outputs(model, again, tiny_images)


def test_a_plain_model_reloads_bit_exact(tmp_path: Path, make_tiny: Callable[[], VGGTInt8]) -> None:
    model = make_tiny()
    model.save_pretrained(tmp_path / "fp32")
    assert_same_state(VGGTInt8.from_pretrained(tmp_path / "fp32"), model)
    assert "quantization_config" not in json.loads((tmp_path / "fp32" / "config.json").read_text())


def test_the_files_hold_the_plain_format(int8_checkpoint: Path) -> None:
    kinds: dict[str, set[str]] = {}
    with safe_open(int8_checkpoint / "model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            part = file.get_slice(name)
            kinds.setdefault(part.get_dtype(), set()).add(name)
            if name.endswith(".weight_scale"):
                weight = file.get_slice(name.removesuffix("_scale"))
                assert weight.get_dtype() == "I8"
                ones = [n for n in part.get_shape() if n != 1]
                assert weight.get_shape()[0] == 1
                assert len(part.get_shape()) == len(weight.get_shape()) - 1
                assert len(ones) <= 1
    assert set(kinds) == {"I8", "F32", "F16"}
    assert all(name.endswith(".weight_scale") for name in kinds["F32"])
    assert {f"{name}_scale" for name in kinds["I8"]} == kinds["F32"]
    for name, tensor in load_file(int8_checkpoint / "model.safetensors").items():
        if tensor.dtype == torch.int8:
            assert tensor.min() >= -127, name


@pytest.mark.parametrize("dtype", DTYPES)
def test_compute_dtype_changes_no_stored_dtype(tmp_path: Path, bare_int8: Path, dtype: torch.dtype) -> None:
    model = VGGTInt8.from_pretrained(bare_int8, dtype=dtype)
    model.save_pretrained(tmp_path / "again")
    before = load_file(bare_int8 / "model.safetensors")
    after = load_file(tmp_path / "again" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype, name
        kept = f"{name.rpartition('.')[0]}.weight_scale" not in before
        assert torch.equal(after[name], tensor.to(dtype).half() if kept else tensor), name


@pytest.mark.parametrize("change", ["half", "float", "bfloat16", "double"])
def test_a_model_cast_later_saves_the_same_codes(tmp_path: Path, bare_int8: Path, change: str) -> None:
    model = getattr(VGGTInt8.from_pretrained(bare_int8), change)()
    model.save_pretrained(tmp_path / "again")
    before = load_file(bare_int8 / "model.safetensors")
    for name, tensor in load_file(tmp_path / "again" / "model.safetensors").items():
        assert tensor.dtype == before[name].dtype
        if tensor.dtype != torch.float16:
            assert torch.equal(tensor, before[name])


def test_shards(tmp_path: Path, bare_int8: Path) -> None:
    model = VGGTInt8.from_pretrained(bare_int8)
    model.save_pretrained(tmp_path / "shards", max_shard_size="80KB")
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    files = {path.name for path in (tmp_path / "shards").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == files
    assert len(files) > 3
    assert_same_state(VGGTInt8.from_pretrained(tmp_path / "shards"), model)
    assert_same_state(AutoModel.from_pretrained(tmp_path / "shards"), model)


@pytest.mark.parametrize("shards", [False, True])
def test_an_interrupted_save_leaves_what_was_there(
    tmp_path: Path, bare_checkpoint: Path, bare_int8: Path, monkeypatch: pytest.MonkeyPatch, shards: bool
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(bare_checkpoint, folder)
    before = snapshot(folder)
    written = []

    def fail_at_the_end(tensors: dict[str, Tensor], file: str, *args: Any, **kwargs: Any) -> None:
        save_file(tensors, file)
        written.append(file)
        if not shards or len(written) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", fail_at_the_end)
    model = VGGTInt8.from_pretrained(bare_int8)
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(folder, max_shard_size="80KB" if shards else "5GB")
    assert written
    assert snapshot(folder) == before
    assert_same_state(VGGTInt8.from_pretrained(folder), VGGTInt8.from_pretrained(bare_checkpoint))


def test_a_loaded_checkpoint_is_overwritten_in_place(tmp_path: Path, bare_int8: Path, tiny_images: Tensor) -> None:
    """The model still reads the file's memory map while it is replaced."""
    folder = tmp_path / "int8"
    shutil.copytree(bare_int8, folder)
    model = VGGTInt8.from_pretrained(folder)
    model.save_pretrained(folder)
    assert snapshot(folder).keys() == {"config.json", "model.safetensors"}
    again = VGGTInt8.from_pretrained(folder)
    assert_same_state(again, VGGTInt8.from_pretrained(bare_int8))
    assert_same_outputs(model, again, tiny_images)


def test_older_weights_go_and_other_files_stay(tmp_path: Path, bare_int8: Path) -> None:
    folder = tmp_path / "int8"
    model = VGGTInt8.from_pretrained(bare_int8)
    model.save_pretrained(folder, max_shard_size="40KB")
    for name in ("README.md", "tracks.safetensors", "model_of_mine.safetensors"):
        (folder / name).write_text("mine")
    model.save_pretrained(folder, max_shard_size="150KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert {p.name for p in folder.glob("model-*")} == set(index["weight_map"].values())
    assert_same_state(VGGTInt8.from_pretrained(folder), model)
    model.save_pretrained(folder)
    mine = {"README.md", "tracks.safetensors", "model_of_mine.safetensors"}
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", *mine}
    assert_same_state(VGGTInt8.from_pretrained(folder), model)


def test_a_recipe_replaces_a_float_checkpoint_in_place(tmp_path: Path, bare_checkpoint: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(bare_checkpoint, folder)
    model = VGGTInt8.from_pretrained(folder, recipe="int8_dynamic")
    model.save_pretrained(folder)
    assert_same_state(VGGTInt8.from_pretrained(folder), model)
    with pytest.raises(CheckpointError, match="quantized already"):
        VGGTInt8.from_pretrained(folder, recipe="int8_dynamic")


def test_others_may_read_what_is_saved(tmp_path: Path, bare_int8: Path) -> None:
    (tmp_path / "any").touch()
    VGGTInt8.from_pretrained(bare_int8).save_pretrained(tmp_path / "new" / "folder", max_shard_size="150KB")
    usual = (tmp_path / "any").stat().st_mode
    assert {path.stat().st_mode for path in (tmp_path / "new" / "folder").iterdir()} == {usual}
    assert (tmp_path / "new" / "folder").stat().st_mode == tmp_path.joinpath("new").stat().st_mode


def test_a_folder_behind_a_link(tmp_path: Path, bare_int8: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    model = VGGTInt8.from_pretrained(bare_int8)
    model.save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "model.safetensors").is_file()


def test_other_processes_write_nothing(tmp_path: Path, bare_int8: Path) -> None:
    model = VGGTInt8.from_pretrained(bare_int8)
    model.save_pretrained(tmp_path / "int8", is_main_process=True)
    before = snapshot(tmp_path / "int8")
    model.save_pretrained(tmp_path / "int8", is_main_process=False)
    model.save_pretrained(tmp_path / "none", is_main_process=False)
    assert snapshot(tmp_path / "int8") == before
    assert not (tmp_path / "none").exists()


def test_a_file_is_no_folder(tmp_path: Path, bare_int8: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="is a file; save_pretrained needs a folder"):
        VGGTInt8.from_pretrained(bare_int8).save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
