"""Names, shapes, initialisation and placement of the weights."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from safetensors.torch import save_file
from torch import Tensor, nn

from vggt_int8.model import VGGT, VGGTConfig
from vggt_int8.model.layers import LayerScale
from vggt_int8.model.network import Network


def test_names_and_shapes_are_those_of_the_public_checkpoint(parity_folder: Path) -> None:
    with torch.device("meta"):
        model = VGGT(VGGTConfig())
    expected = json.loads((parity_folder / "vggt_1b_state_dict.json").read_text())
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == expected
    assert not list(model.buffers()), "non-persistent buffers are left uninitialised by a load on the meta device"


def test_save_and_load_is_exact(
    make_model: Callable[..., VGGT], tiny_weights: dict[str, Tensor], tmp_path: Path
) -> None:
    make_model().save_pretrained(tmp_path, max_shard_size="500KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = VGGT.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    assert loaded.keys() == tiny_weights.keys()
    assert all(torch.equal(loaded[name], value) for name, value in tiny_weights.items())


def test_random_initialisation(tiny_config: VGGTConfig) -> None:
    torch.manual_seed(0)
    model = VGGT(tiny_config)
    scales = {name: module for name, module in model.named_modules() if isinstance(module, LayerScale)}
    for name, module in scales.items():
        assert (module.gamma == (1.0 if ".patch_embed." in name else 0.01)).all(), name
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert (module.bias == 0).all(), name
            assert 0 < module.weight.std() < 0.03, name
    assert 0 < model.aggregator.camera_token.std() < 1e-5
    assert 0.01 < model.aggregator.patch_embed.pos_embed.std() < 0.03
    assert model.track_head.tracker.query_ref_token.std() > 0.5
    with torch.inference_mode():
        output = model.eval()(torch.rand(2, 3, 28, 28), query_points=torch.tensor([[3.0, 4.0]]))
    assert all(value.isfinite().all() for name, value in output.items() if name != "intrinsic")


@pytest.mark.slow
def test_weights_missing_from_a_checkpoint_are_refused_and_only_they_initialised(
    tiny_config: VGGTConfig, make_model: Callable[..., VGGT], tmp_path: Path
) -> None:
    make_model().save_pretrained(tmp_path)
    weights = make_model().state_dict()
    absent = [name for name in weights if name.startswith("camera_head.")]
    config = json.loads((tmp_path / "config.json").read_text())
    del config["save"]  # of the whole one
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({name: value for name, value in weights.items() if name not in absent}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"does not fit the network: \['camera_head"):
        VGGT.from_pretrained(tmp_path, dtype=torch.float32)
    loaded = super(Network, VGGT).from_pretrained(tmp_path, dtype=torch.float32)  # as transformers would have it
    assert torch.equal(loaded.aggregator.camera_token, weights["aggregator.camera_token"])
    assert (loaded.camera_head.trunk[0].ls1.gamma == 0.01).all()
    assert 0 < loaded.camera_head.trunk[0].mlp.fc1.weight.std() < 0.03


@pytest.mark.filterwarnings("ignore:The following device_map keys do not match any submodules")  # two parameters
@pytest.mark.parametrize(
    "where", ["disk", *(pytest.param(x, marks=pytest.mark.slow) for x in ("cpu", "device_map", "auto"))]
)
@torch.no_grad()
def test_offloaded_weights_give_the_same_result(
    make_model: Callable[..., VGGT], golden: Callable[[str], dict[str, Tensor]], tmp_path: Path, where: str
) -> None:
    inputs = golden("landscape")
    expected = make_model()(inputs["in.images"], query_points=inputs["in.query_points"])
    cpu = torch.device("cpu")
    if where == "cpu":
        model = cpu_offload(make_model(), execution_device=cpu)
    elif where == "disk":
        model = disk_offload(make_model(), tmp_path, execution_device=cpu)
    else:
        make_model().save_pretrained(tmp_path / "model")
        places = {"aggregator": "disk", "camera_head": "cpu", "track_head": "disk"}
        model = VGGT.from_pretrained(
            tmp_path / "model",
            dtype=torch.float32,
            device_map="auto" if where == "auto" else {**places, "depth_head": "disk", "point_head": "cpu"},
            max_memory={"cpu": 3_000_000} if where == "auto" else None,
            offload_folder=tmp_path / "offload",
        )
    assert model.aggregator.global_blocks[-1].attn.qkv.weight.device.type == "meta"
    output = model(inputs["in.images"], query_points=inputs["in.query_points"])
    for name, value in output.items():
        torch.testing.assert_close(value, expected[name])
