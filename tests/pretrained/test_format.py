"""The checkpoint format: other people's loaders refuse INT8 codes, and format 1 still loads, exactly."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

from vggt_int8 import VGGT, CheckpointError, VGGTConfig, VGGTInt8, quantize

INDEX = "model.safetensors.index.json"
MIXED = {
    "aggregator.patch_embed": "cpu",
    "aggregator.camera_token": "cpu",
    "aggregator.register_token": "cpu",
    "aggregator.frame_blocks": "disk",
    "aggregator.global_blocks": "cpu",
    "camera_head": "disk",
    "depth_head": "disk",
}


def network(sizes: dict[str, Any]) -> dict[str, nn.Module]:
    """The parts of a float network with the reference names and shapes."""
    return dict(VGGT(VGGTConfig(**sizes)).named_children())


class HubNetwork(nn.Module, PyTorchModelHubMixin):
    """As the reference repository's own class is loaded."""

    sizes: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        super().__init__()
        for name, part in network(self.sizes).items():
            setattr(self, name, part)


class PlainConfig(PreTrainedConfig):
    model_type = "plain"


class PlainNetwork(PreTrainedModel):
    """A model of transformers for which this package does not exist."""

    config_class = PlainConfig
    sizes: ClassVar[dict[str, Any]] = {}

    def __init__(self, config: PlainConfig) -> None:
        super().__init__(config)
        for name, part in network(self.sizes).items():
            setattr(self, name, part)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        pass


@pytest.mark.parametrize("strict", [True, False])
def test_a_class_of_the_hub_refuses_codes(
    monkeypatch: pytest.MonkeyPatch,
    bare_sizes: dict[str, Any],
    bare_checkpoint: Path,
    bare_int8: Path,
    strict: bool,
) -> None:
    monkeypatch.setattr(HubNetwork, "sizes", bare_sizes)
    assert HubNetwork.from_pretrained(bare_checkpoint, strict=strict) is not None, "floats do load"
    with pytest.raises(RuntimeError, match="size mismatch for aggregator"):
        HubNetwork.from_pretrained(bare_int8, strict=strict)


def test_transformers_without_this_package_refuses_codes(
    monkeypatch: pytest.MonkeyPatch, bare_sizes: dict[str, Any], bare_checkpoint: Path, bare_int8: Path
) -> None:
    monkeypatch.setattr(PlainNetwork, "sizes", bare_sizes)
    for registry in (AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING):
        monkeypatch.delitem(registry, "vggt_int8")
    assert PlainNetwork.from_pretrained(bare_checkpoint) is not None, "floats do load"
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        PlainNetwork.from_pretrained(bare_int8)


def format_1(source: Path, folder: Path) -> Path:
    """A checkpoint as format 1 had it: codes in the shape of the floats."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["format_version"] = 1
    config.pop("save", None)
    (folder / "config.json").write_text(json.dumps(config))
    for file in folder.glob("*.safetensors"):
        tensors = {name: t[0] if t.dtype == torch.int8 else t for name, t in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    if (folder / INDEX).exists():
        index = json.loads((folder / INDEX).read_text())
        index["metadata"] = {"total_size": index["metadata"]["total_size"]}
        (folder / INDEX).write_text(json.dumps(index))
    return folder


def shapes(folder: Path) -> dict[str, list[int]]:
    """Of all codes in a folder."""
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found.update({name: part.get_shape() for name, part in parts.items() if part.get_dtype() == "I8"})
    return found


def assert_same(a: nn.Module, b: nn.Module) -> None:
    want, got = a.state_dict(), b.state_dict()
    assert want.keys() == got.keys()
    for name, tensor in want.items():
        assert tensor.shape == got[name].shape, name
        assert torch.equal(tensor, got[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("shards", ["5GB", "150KB"])
def test_format_1_loads_and_is_saved_as_2(tmp_path: Path, bare_int8: Path, tiny_images: Tensor, shards: str) -> None:
    model = VGGTInt8.from_pretrained(bare_int8)
    model.save_pretrained(tmp_path / "two", max_shard_size=shards)
    one = format_1(tmp_path / "two", tmp_path / "one")
    assert {len(shape) for shape in shapes(one).values()} == {2, 4}
    for load in (VGGTInt8.from_pretrained, AutoModel.from_pretrained):
        again = load(one)
        assert_same(again, model)
    assert torch.equal(again(tiny_images).depth, model(tiny_images).depth)
    again.save_pretrained(tmp_path / "again", max_shard_size=shards)
    assert shapes(tmp_path / "again") == shapes(tmp_path / "two")
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()
    }


def test_format_1_as_a_state_dict(tmp_path: Path, bare_int8: Path) -> None:
    model = VGGTInt8.from_pretrained(bare_int8)
    one = load_file(format_1(bare_int8, tmp_path / "one") / "model.safetensors")
    other = VGGTInt8.from_pretrained(bare_int8)
    for parameter in other.parameters():
        parameter.data = torch.zeros_like(parameter)
    other.load_state_dict(one)
    assert_same(other, model)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The following device_map keys do not match any submodules")  # two parameters
@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")
@pytest.mark.parametrize("device_map", [{"": "disk"}, MIXED], ids=["disk", "mixed"])
def test_format_1_offloaded(tmp_path: Path, bare_int8: Path, tiny_images: Tensor, device_map: dict[str, str]) -> None:
    one = format_1(bare_int8, tmp_path / "one")
    model = VGGTInt8.from_pretrained(one, device_map=device_map, offload_folder=tmp_path / "offload")
    whole = VGGTInt8.from_pretrained(bare_int8)
    whole.set_runtime("off")
    assert torch.equal(model(tiny_images).depth, whole(tiny_images).depth)
    model.save_pretrained(tmp_path / "again")
    assert shapes(tmp_path / "again") == shapes(bare_int8)
    assert_same(VGGTInt8.from_pretrained(tmp_path / "again"), whole)


@pytest.mark.parametrize("damage", ["narrow", "alike"])
def test_codes_that_no_trained_layer_has_are_told(tmp_path: Path, bare_int8: Path, damage: str) -> None:
    name = "aggregator.frame_blocks.1.attn.qkv.weight"
    shutil.copytree(bare_int8, tmp_path / "other")
    file = tmp_path / "other" / "model.safetensors"
    tensors = load_file(file)
    if damage == "narrow":
        tensors[name][0, 2:5].clamp_(-100, 100)
        what = f"3 channels, in {name}, have no code of 127 or -127.*verify=True"
    else:
        tensors[name].fill_(127)
        what = f"all codes of a layer are the same number in {name}.*verify=True"
    with safe_open(file, framework="pt") as old:
        metadata = old.metadata()
    save_file(tensors, file, metadata=metadata)
    with pytest.warns(UserWarning, match=what):
        VGGTInt8.from_pretrained(tmp_path / "other")


ODD_STATES = [
    ("weight", lambda t: t[0, 2:5].clamp_(-100, 100), "3 channels, in {}.weight, have no code of 127 or -127"),
    ("weight", lambda t: t.fill_(127), "all codes of a layer are the same number in {}.weight"),
]
NO_STATES = [
    ("weight_scale", lambda t: t[1].fill_(600), "scales of up to 600, which no such weight has, in {}.weight_scale"),
    ("weight_scale", lambda t: t[1].fill_(1e-40), "{}.weight_scale holds denormal scales"),
    ("weight", lambda t: t[0, 1].zero_(), "{}.weight holds 1 channels of zeros whose scale is not 1"),
]


@pytest.mark.parametrize("made", ["loaded", "quantized"])
def test_a_state_dict_is_judged_as_files_are(bare_checkpoint: Path, bare_int8: Path, made: str) -> None:
    name = "aggregator.frame_blocks.1.attn.qkv"
    model = VGGTInt8.from_pretrained(bare_int8 if made == "loaded" else bare_checkpoint)
    if made == "quantized":
        quantize(model, "int8_dynamic")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}

    def changed(key: str, change: Callable[[Tensor], Any]) -> dict[str, Tensor]:
        state = {key: tensor.clone() for key, tensor in before.items()}
        change(state[f"{name}.{key}"])
        return state

    for key, change, message in NO_STATES:
        with pytest.raises(RuntimeError, match=message.format(name)):
            model.load_state_dict(changed(key, change))
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    for key, change, message in ODD_STATES:
        with pytest.warns(UserWarning, match=message.format(name)):
            model.load_state_dict(changed(key, change))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_state_dict(before)
        torch.nn.ModuleDict({"net": model}).load_state_dict({f"net.{key}": value for key, value in before.items()})
    outer = torch.nn.ModuleDict({"net": model})
    with pytest.raises(RuntimeError, match="scales of up to 600"):
        outer.load_state_dict({f"net.{k}": v for k, v in changed(*NO_STATES[0][:2]).items()})


def test_weights_beyond_fp16_are_not_quantized(tmp_path: Path, bare_sizes: dict[str, Any]) -> None:
    model = VGGTInt8(VGGTConfig(**bare_sizes))
    model.aggregator.frame_blocks[0].attn.qkv.weight.data[3, 2] = 1e6
    model.save_pretrained(tmp_path / "fp32")
    message = r"aggregator\.frame_blocks\.0\.attn\.qkv\.weight: the weight holds 1e\+06, beyond fp16"
    with pytest.raises(CheckpointError, match=message):
        VGGTInt8.from_pretrained(tmp_path / "fp32", recipe="int8_dynamic")
    with pytest.raises(ValueError, match=message):
        quantize(model, "int8_dynamic")


def test_a_weight_of_zeros_is_sound(tmp_path: Path, bare_sizes: dict[str, Any]) -> None:
    model = VGGTInt8(VGGTConfig(**bare_sizes))
    model.camera_head.pose_branch.fc2.weight.data.zero_()
    model.aggregator.frame_blocks[0].attn.qkv.weight.data[3] = 1e-42
    quantize(model, "int8_dynamic").save_pretrained(tmp_path / "int8")
    assert_same(VGGTInt8.from_pretrained(tmp_path / "int8", verify=True), model)


@pytest.mark.slow
def test_a_checkpoint_with_int8_attention_computes_it_in_floats(
    int8_checkpoint: Path, tiny_images: Tensor, tmp_path: Path
) -> None:
    shutil.copytree(int8_checkpoint, tmp_path / "older")
    config = json.loads((tmp_path / "older" / "config.json").read_text())
    recipe = config["quantization_config"]["recipe"]
    recipe |= {"attention": "int8", "attention_layers": [r"aggregator\.global_blocks\.\d+\.attn\.core"]}
    (tmp_path / "older" / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="attention is computed in floating point"):
        model = VGGTInt8.from_pretrained(tmp_path / "older")
    with torch.inference_mode():
        found, wanted = model(tiny_images), VGGTInt8.from_pretrained(int8_checkpoint)(tiny_images)
    assert torch.equal(found.pose_enc, wanted.pose_enc)
    assert torch.equal(found.depth, wanted.depth)
    model.save_pretrained(tmp_path / "again")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        VGGTInt8.from_pretrained(tmp_path / "again")
    assert (
        "attention" not in json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"]["recipe"]
    )
