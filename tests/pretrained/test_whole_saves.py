"""A save over a checkpoint that is killed leaves the old one, the new one, or what is refused; digests tell damage."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel

from tests.kills import killed_before
from vggt_int8 import CheckpointError, VGGTConfig, VGGTInt8
from vggt_int8.files import sweep
from vggt_int8.saves.save_id import digest

INDEX = "model.safetensors.index.json"
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of two blocks and a camera head, in fp32."""
    folder = tmp_path_factory.mktemp("small") / "fp32"
    torch.manual_seed(0)
    sizes = {"img_size": 28, "embed_dim": 32, "encoder_depth": 1, "encoder_num_heads": 2, "depth": 1, "num_heads": 2}
    heads = {"camera_depth": 1, "camera_num_heads": 2, "camera_iterations": 1, "dpt_layers": [0, 0, 0, 0]}
    off = {"enable_point": False, "enable_track": False, "enable_depth": False}
    VGGTInt8(VGGTConfig(**sizes, **heads, **off)).save_pretrained(folder)
    return folder


def state_of(model: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


# What lies in the folder, and what is saved over it: recipe, largest file.
OVER = {
    "fp32 over INT8": (("int8_dynamic", "5GB"), (None, "5GB")),
    "another recipe of the same shapes": (("int8_dynamic", "5GB"), ("int8_weight_only", "5GB")),
    "shards over shards": (("int8_dynamic", "100KB"), ("int8_weight_only", "100KB")),
    "a file over shards": (("int8_weight_only", "100KB"), ("int8_dynamic", "5GB")),
    "shards over a file": ((None, "5GB"), ("int8_dynamic", "100KB")),
}


MARKS = {
    "fp32 over INT8": pytest.mark.slow,
    "shards over shards": pytest.mark.slow,
    "a file over shards": pytest.mark.exhaustive,
    "another recipe of the same shapes": pytest.mark.exhaustive,
    "shards over a file": pytest.mark.exhaustive,
}


@pytest.mark.parametrize("what", [pytest.param(what, marks=MARKS.get(what, ())) for what in OVER])
def test_a_save_that_is_killed_before_any_step(tmp_path: Path, small: Path, what: str) -> None:
    (old_recipe, old_size), (new_recipe, new_size) = OVER[what]
    start = tmp_path / "start"
    old = VGGTInt8.from_pretrained(small, recipe=old_recipe)
    old.save_pretrained(start, max_shard_size=old_size)
    (start / "README.md").write_text("mine")
    (start / "runs").mkdir()
    (start / "runs" / "log.txt").write_text("mine")
    new = VGGTInt8.from_pretrained(small, recipe=new_recipe)
    if new_recipe is None:  # other values, so that it is seen which of the two was loaded
        for parameter in new.parameters():
            parameter.data.mul_(1.25)
    models, recipes = (state_of(old), state_of(new)), (old_recipe, new_recipe)
    seen = []
    for moment in range(200):
        folder = tmp_path / f"at-{moment}"
        shutil.copytree(start, folder)
        killed = killed_before(moment, lambda: new.save_pretrained(folder, max_shard_size=new_size))  # noqa: B023
        assert (folder / "README.md").read_text() == (folder / "runs" / "log.txt").read_text() == "mine"
        loaded = VGGTInt8.from_pretrained(folder, verify=True)
        seen.append(next(i for i in (0, 1) if same(state_of(loaded), models[i]) and recipe_of(loaded) == recipes[i]))
        if not killed:
            break
        sweep(folder)  # as the next save begins
        assert not [path for path in folder.iterdir() if path.name.startswith(".")], "leftovers are swept"
        shutil.rmtree(folder)
    assert seen == sorted(seen), "first always the old one, then always the new one"
    assert set(seen) == {0, 1}
    assert len(seen) > 15


@pytest.mark.slow
def test_a_folder_between_two_renames_is_no_checkpoint_for_others(tmp_path: Path, small: Path) -> None:
    """transformers and the Hub's classes, which know nothing of journals, find no config.json there."""
    new = VGGTInt8.from_pretrained(small, recipe="int8_dynamic")
    partial = []
    for moment in range(200):
        folder = tmp_path / f"at-{moment}"
        shutil.copytree(small, folder)
        if not killed_before(moment, lambda: new.save_pretrained(folder)):  # noqa: B023
            break
        if not (folder / "config.json").exists():
            partial.append(folder)
            with pytest.raises((OSError, ValueError), match=r"config\.json"):
                AutoModel.from_pretrained(folder)
    assert len(partial) > 2


def test_a_new_folder_appears_whole(tmp_path: Path, small: Path) -> None:
    model = VGGTInt8.from_pretrained(small, recipe="int8_dynamic")
    for moment in range(200):
        folder = tmp_path / "new"
        killed = killed_before(moment, lambda: model.save_pretrained(folder, max_shard_size="100KB"))  # noqa: B023
        if folder.exists():
            VGGTInt8.from_pretrained(folder, verify=True)
            shutil.rmtree(folder)
        if not killed:
            break
    model.save_pretrained(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["new"], "leftovers are swept"


def recipe_of(model: VGGTInt8) -> str | None:
    quantization = getattr(model.config, "quantization_config", None)
    return None if quantization is None else quantization.parsed().name


@pytest.fixture(scope="module")
def saves(tmp_path_factory: pytest.TempPathFactory, small: Path) -> dict[str, Path]:
    """Saves of models of one shape: two recipes, whole and in shards; fp32 twice. Read only."""
    folder = tmp_path_factory.mktemp("saves")
    for recipe in ("int8_dynamic", "int8_weight_only"):
        model = VGGTInt8.from_pretrained(small, recipe=recipe)
        model.save_pretrained(folder / recipe)
        model.save_pretrained(folder / f"{recipe}-shards", max_shard_size="100KB")
    floats = VGGTInt8.from_pretrained(small)
    for parameter in floats.parameters():
        parameter.data.mul_(1.25)
    floats.save_pretrained(folder / "fp32")
    floats.save_pretrained(folder / "fp32-shards", max_shard_size="200KB")
    shutil.copytree(small, folder / "small")
    return {path.name: path for path in folder.iterdir()}


def put(name: str, source: str) -> Callable[[Path, dict[str, Path]], None]:
    return lambda folder, saves: shutil.copy(saves[source] / name, folder / name) and None


def no_id(folder: Path, _: Any) -> None:
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", metadata={"format": "pt"})


def edit(change: Callable[[dict[str, Any]], Any], name: str = "config.json") -> Callable[[Path, Any], None]:
    def apply(folder: Path, _: Any) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return apply


SHARD = "model-00001-of-0000{}.safetensors"
MIXED = [
    ("int8_dynamic", "the config of another recipe", put("config.json", "int8_weight_only")),
    ("int8_dynamic", "the weights of another recipe", put("model.safetensors", "int8_weight_only")),
    ("fp32", "the weights of another model", put("model.safetensors", "small")),
    ("int8_dynamic-shards", "the config of another recipe", put("config.json", "int8_weight_only-shards")),
    ("int8_dynamic-shards", "the index of another recipe", put(INDEX, "int8_weight_only-shards")),
    ("int8_dynamic-shards", "a file of the other layout", put("model.safetensors", "int8_weight_only")),
    ("int8_dynamic", "weights without an id", no_id),
    ("int8_dynamic", "a config without an id", edit(lambda c: c.pop("save"))),
    ("fp32", "a config without an id", edit(lambda c: c.pop("save"))),
    ("int8_dynamic-shards", "an index without an id", edit(lambda c: c["metadata"].pop("save_id"), INDEX)),
]


@pytest.mark.parametrize(("kind", "what", "change"), MIXED, ids=[f"{kind}: {what}" for kind, what, _ in MIXED])
def test_files_of_two_saves_are_no_model(
    tmp_path: Path, saves: dict[str, Path], kind: str, what: str, change: Callable[[Path, Any], None]
) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(saves[kind], folder)
    change(folder, saves)
    with pytest.raises(CheckpointError, match=r"holds files of different saves \(.*\bid\b.*one by one\. Save, copy"):
        VGGTInt8.from_pretrained(folder)
    nested = tmp_path / "repository" / "int8"
    shutil.copytree(folder, nested)
    with pytest.raises(CheckpointError, match="holds files of different saves"):
        VGGTInt8.from_pretrained(nested.parent, subfolder="int8")


@pytest.mark.parametrize("kind", ["int8_dynamic-shards", "fp32-shards"])
def test_a_shard_of_another_save(tmp_path: Path, saves: dict[str, Path], kind: str) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(saves[kind], folder)
    shard = next(folder.glob("model-00002-of-*"))
    content = shard.read_bytes()
    old = json.loads((folder / "config.json").read_text())["save"]["id"]
    shard.write_bytes(content.replace(old.encode(), old[::-1].encode()))
    with pytest.raises(CheckpointError, match=rf"different saves .*{shard.name}: id {old[::-1]}"):
        VGGTInt8.from_pretrained(folder)


def test_every_file_carries_the_id(saves: dict[str, Path]) -> None:
    ids = set()
    for folder in saves.values():
        save = json.loads((folder / "config.json").read_text())["save"]
        ids.add(save["id"])
        files = {path.name: path for path in folder.glob("*.safetensors")}
        assert save["sha256"] == {name: digest(path) for name, path in files.items()}
        for path in files.values():
            with safe_open(path, framework="pt") as file:
                assert file.metadata() == {"format": "pt", "save_id": save["id"]}
        if (folder / INDEX).exists():
            assert json.loads((folder / INDEX).read_text())["metadata"]["save_id"] == save["id"]
    assert len(ids) == len(saves), "each save has its own"


@pytest.mark.parametrize("kind", ["int8_dynamic", "int8_dynamic-shards", "fp32", "fp32-shards"])
def test_verify_finds_a_flipped_bit(tmp_path: Path, saves: dict[str, Path], kind: str) -> None:
    folder = tmp_path / "flipped"
    shutil.copytree(saves[kind], folder)
    VGGTInt8.from_pretrained(folder, verify=True)
    file = max(folder.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-64] ^= 1
    file.write_bytes(content)
    VGGTInt8.from_pretrained(folder)
    with pytest.raises(CheckpointError, match=rf"{file.name} has been changed or damaged since it was saved"):
        VGGTInt8.from_pretrained(folder, verify=True)


@pytest.mark.parametrize("kind", ["int8_dynamic", "fp32-shards"])
def test_verify_finds_a_changed_config(tmp_path: Path, saves: dict[str, Path], kind: str) -> None:
    """Also where the change makes another valid model, or says nothing that is read."""
    for number, change in enumerate(
        (
            lambda c: c.update(dtype="float16" if c["dtype"] != "float16" else "float32"),
            lambda c: c.update(note="mine"),
            lambda c: c.pop("architectures"),
            lambda c: c["save"].update(sha256={**c["save"]["sha256"], "x.safetensors": "0"}),
        )
    ):
        folder = tmp_path / str(number)
        shutil.copytree(saves[kind], folder)
        edit(change)(folder, None)
        with pytest.raises(CheckpointError, match=r"config\.json has been changed or damaged since it was saved"):
            VGGTInt8.from_pretrained(folder, verify=True)


def test_verify_needs_digests(tmp_path: Path, saves: dict[str, Path]) -> None:
    folder = tmp_path / "plain"
    shutil.copytree(saves["fp32"], folder)
    no_id(folder, None)
    edit(lambda c: c.pop("save"))(folder, None)
    VGGTInt8.from_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"cannot be verified: its config\.json holds no digests"):
        VGGTInt8.from_pretrained(folder, verify=True)


@pytest.mark.parametrize("save", [1, "x", {}, {"id": 1, "sha256": {}}, {"id": "a", "sha256": {}, "more": 1}])
def test_a_save_that_is_none(tmp_path: Path, saves: dict[str, Path], save: Any) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(saves["fp32"], folder)
    edit(lambda c: c.update(save=save))(folder, None)
    with pytest.raises(CheckpointError, match=r"its save is no id with sha256 digests"):
        VGGTInt8.from_pretrained(folder)


def test_a_config_given_by_hand_may_change_sizes_but_not_the_save(tmp_path: Path, saves: dict[str, Path]) -> None:
    config = VGGTConfig.from_pretrained(saves["fp32"])
    assert VGGTInt8.from_pretrained(saves["fp32"], config=config) is not None
    VGGTInt8.from_pretrained(saves["fp32"], config=config).save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())["save"]
    assert again == json.loads((saves["fp32"] / "config.json").read_text())["save"]


def test_a_variant_would_share_the_config(tmp_path: Path, saves: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match="variant='fp16' would share one config"):
        VGGTInt8.from_pretrained(saves["fp32"]).save_pretrained(tmp_path / "out", variant="fp16")
    assert not (tmp_path / "out").exists()


def test_a_link_is_not_replaced(tmp_path: Path, saves: dict[str, Path]) -> None:
    folder = tmp_path / "linked"
    folder.mkdir()
    for path in saves["fp32"].iterdir():
        (folder / path.name).symlink_to(path)
    with pytest.raises(CheckpointError, match=r"is a link, which a save would not follow"):
        VGGTInt8.from_pretrained(folder).save_pretrained(folder)
    assert all(path.is_symlink() for path in folder.iterdir())


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    from transformers.utils import logging

    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()
