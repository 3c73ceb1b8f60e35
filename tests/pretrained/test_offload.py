"""CPU and disk offload of a saved INT8 model by accelerate: the same numbers; refused where they would not be."""

from pathlib import Path

import accelerate
import pytest
import torch
from torch import Tensor

from vggt_int8 import CheckpointError, VGGTInt8

pytestmark = [
    pytest.mark.filterwarnings("ignore:The following device_map keys do not match any submodules"),  # two parameters
    pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules"),
]
CPU = torch.device("cpu")
MIXED = {
    "aggregator.patch_embed": "cpu",
    "aggregator.camera_token": "cpu",
    "aggregator.register_token": "cpu",
    "aggregator.frame_blocks": "disk",
    "aggregator.global_blocks.0": "cpu",
    "aggregator.global_blocks.1": "disk",
    "aggregator.global_blocks.2": "cpu",
    "aggregator.global_blocks.3": "disk",
    "camera_head": "disk",
    "depth_head": "cpu",
    "point_head": "disk",
    "track_head": "disk",
}
BARE_MIXED = {
    name: place for name, place in MIXED.items() if not name.startswith(("point_", "track_")) and name[-1] not in "23"
}


def assert_same_outputs(a: VGGTInt8, b: VGGTInt8, images: Tensor, points: Tensor | None = None) -> None:
    """On the network's own modules, where offloaded ones run anyway."""
    a.set_runtime("off")
    b.set_runtime("off")
    with torch.no_grad():
        want, got = a(images, query_points=points), b(images, query_points=points)
    assert want.keys() == got.keys()
    for name in want:
        assert torch.equal(want[name], got[name]), name


@pytest.fixture(scope="module")
def whole(bare_int8: Path) -> VGGTInt8:
    """The same model, not offloaded."""
    return VGGTInt8.from_pretrained(bare_int8)


def offloaded(model: VGGTInt8) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.is_meta}


@pytest.mark.slow
def test_device_map_with_disk(tmp_path: Path, int8_checkpoint: Path, tiny_images: Tensor, tiny_points: Tensor) -> None:
    whole = VGGTInt8.from_pretrained(int8_checkpoint)
    model = VGGTInt8.from_pretrained(int8_checkpoint, device_map=MIXED, offload_folder=tmp_path / "offload")
    on_disk = {"aggregator", "camera_head", "point_head", "track_head"}
    assert {name.split(".")[0] for name in offloaded(model)} == on_disk
    assert_same_outputs(whole, model, tiny_images, tiny_points)
    assert {row.backend for row in model.quantization_report() if row.type == "Int8Linear"} == {"native"}


def test_device_map_with_disk_in_another_dtype(tmp_path: Path, bare_int8: Path, tiny_images: Tensor) -> None:
    half = {"dtype": torch.bfloat16}
    model = VGGTInt8.from_pretrained(bare_int8, device_map=BARE_MIXED, offload_folder=tmp_path / "offload", **half)
    assert offloaded(model)
    assert_same_outputs(VGGTInt8.from_pretrained(bare_int8, **half), model, tiny_images)


def test_everything_on_disk(tmp_path: Path, bare_int8: Path, whole: VGGTInt8, tiny_images: Tensor) -> None:
    model = VGGTInt8.from_pretrained(bare_int8, device_map={"": "disk"}, offload_folder=tmp_path / "offload")
    assert offloaded(model) == {name for name, _ in model.named_parameters()}
    assert_same_outputs(whole, model, tiny_images)


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}, CPU])
def test_device_maps_of_a_machine_without_gpu(
    bare_int8: Path, whole: VGGTInt8, tiny_images: Tensor, device_map: object
) -> None:
    if device_map == "auto" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    model = VGGTInt8.from_pretrained(bare_int8, device_map=device_map)
    assert not offloaded(model)
    assert_same_outputs(whole, model, tiny_images)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offload_of_a_loaded_model(tmp_path: Path, bare_int8: Path, tiny_images: Tensor, where: str) -> None:
    whole = VGGTInt8.from_pretrained(bare_int8)
    model = VGGTInt8.from_pretrained(bare_int8)
    if where == "cpu":
        accelerate.cpu_offload(model, execution_device=CPU)
    else:
        accelerate.disk_offload(model, str(tmp_path / "offload"), execution_device=CPU)
    assert offloaded(model) == {name for name, _ in model.named_parameters()}
    assert_same_outputs(whole, model, tiny_images)
    assert len(model.quantization_report()) == len(whole.quantization_report())
    model.set_backend("reference")
    whole.set_backend("reference")
    assert_same_outputs(whole, model, tiny_images)


@pytest.mark.parametrize("how", ["device_map", "cpu_offload", "disk_offload"])
def test_an_offloaded_model_is_saved_whole(tmp_path: Path, bare_int8: Path, whole: VGGTInt8, how: str) -> None:
    folder = str(tmp_path / "offload")
    if how == "device_map":
        model = VGGTInt8.from_pretrained(bare_int8, device_map=BARE_MIXED, offload_folder=folder)
    else:
        model = VGGTInt8.from_pretrained(bare_int8)
        if how == "cpu_offload":
            accelerate.cpu_offload(model, execution_device=CPU)
        else:
            accelerate.disk_offload(model, folder, execution_device=CPU)
    model.save_pretrained(tmp_path / "saved", max_shard_size="200KB")
    want = whole.state_dict()
    got = VGGTInt8.from_pretrained(tmp_path / "saved").state_dict()
    for name, tensor in want.items():
        assert torch.equal(tensor, got[name]), name


def test_quantizing_to_disk_is_refused(tmp_path: Path, bare_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot go to disk while they are quantized.*save_pretrained"):
        VGGTInt8.from_pretrained(
            bare_checkpoint, recipe="int8_dynamic", device_map=BARE_MIXED, offload_folder=tmp_path / "offload"
        )


def test_a_plain_model_on_disk(tmp_path: Path, bare_checkpoint: Path, tiny_images: Tensor) -> None:
    model = VGGTInt8.from_pretrained(bare_checkpoint, device_map=BARE_MIXED, offload_folder=tmp_path / "offload")
    assert_same_outputs(VGGTInt8.from_pretrained(bare_checkpoint), model, tiny_images)
