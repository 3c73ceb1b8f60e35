"""VGGT-Ω's weights: public names and shapes, constants, and every way in which they are loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel

from vggt_int8 import CheckpointError, VGGTOmega, VGGTOmegaConfig, VGGTOmegaInt8
from vggt_int8.model.omega.constants import ConstantBuffer

Make = Callable[..., VGGTOmega]


def assert_same(model: VGGTOmega, weights: dict[str, Tensor]) -> None:
    state = model.state_dict()
    assert state.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(state[name], value.to(state[name].dtype)), name


def without(weights: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if not name.startswith(f"{part}.")}


@pytest.mark.parametrize("text", [True, False])
def test_names_and_shapes_are_those_of_the_public_checkpoints(omega_folder: Path, text: bool) -> None:
    with torch.device("meta"):
        model = VGGTOmega(VGGTOmegaConfig(enable_text=text))
    expected = json.loads((omega_folder / "vggt_omega_1b_state_dict.json").read_text())
    if not text:
        expected = without(expected, "text_alignment_head")
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == expected
    count = sum(parameter.numel() for parameter in model.parameters())
    assert 0.97 * count < model.config.least_parameters() < count


def test_constants_are_right_and_not_read(make_omega: Make, omega_config: VGGTOmegaConfig) -> None:
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.device("meta"):
        fresh = VGGTOmega(omega_config).eval()
    fresh = fresh.to_empty(device="cpu")
    for _, buffer in fresh.named_buffers():
        buffer.fill_(float("nan"))
    fresh.load_state_dict(dict(make_omega().named_parameters()), strict=False)  # a loader that leaves buffers out
    with torch.inference_mode():
        assert torch.equal(fresh(images).depth, make_omega()(images).depth)
    for module in VGGTOmega(omega_config).modules():
        if isinstance(module, ConstantBuffer):
            assert module.holds(module.get_buffer(module.buffer))
            assert module.get_buffer(module.buffer).isfinite().all()
    mask = make_omega().camera_head.trunk[0].attn.qkv.bias_mask
    assert torch.equal(mask, torch.cat([torch.ones(128), torch.zeros(128), torch.ones(128)]))


@pytest.mark.parametrize(
    "name", ["camera_head.trunk.2.attn.qkv.bias_mask", "aggregator.rope_embed.periods"], ids=["mask", "periods"]
)
def test_other_constants_are_another_network(
    make_omega: Make, omega_config: VGGTOmegaConfig, omega_weights: dict[str, Tensor], tmp_path: Path, name: str
) -> None:
    changed = {**omega_weights, name: omega_weights[name] + 0.5}
    with pytest.raises(RuntimeError, match=f"{name} holds other constants"):
        make_omega().load_state_dict(changed)
    save_file(changed, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"is of another network than VGGT-Omega: {name} differs"):
        VGGTOmega.from_pretrained(tmp_path / "model.safetensors", config=omega_config)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_single_file(
    omega_config: VGGTOmegaConfig, omega_weights: dict[str, Tensor], tmp_path: Path, suffix: str
) -> None:
    file = tmp_path / "weights" / f"model.{suffix}"
    file.parent.mkdir()
    (torch.save if suffix == "pt" else save_file)(omega_weights, file)
    sizes = {name: getattr(omega_config, name) for name in VGGTOmegaConfig.__annotations__ if name != "model_type"}
    sizes = {name: value for name, value in sizes.items() if not name.startswith("enable_")}
    for source, filename in ((file, None), (tmp_path, f"weights/model.{suffix}")):
        model = VGGTOmega.from_pretrained(source, filename=filename, dtype=torch.float32, **sizes)
        assert_same(model, omega_weights)
        assert model.dtype == torch.float32
        assert not model.training
    fewer = VGGTOmega.from_pretrained(file, **sizes, enable_text=False, enable_depth=False, dtype=torch.bfloat16)
    assert fewer.dtype == torch.bfloat16
    assert fewer.text_alignment_head is None
    assert_same(fewer, without(without(omega_weights, "text_alignment_head"), "dense_head"))


def test_heads_are_those_of_the_file(
    omega_config: VGGTOmegaConfig, omega_weights: dict[str, Tensor], tmp_path: Path
) -> None:
    kept = without(omega_weights, "text_alignment_head")
    torch.save(kept, tmp_path / "model.pt")
    fields = json.loads((Path(__file__).parents[2] / "data/parity_omega/tiny_omega_config.json").read_text())
    del fields["enable_text"]
    model = VGGTOmega.from_pretrained(tmp_path / "model.pt", **fields)
    assert_same(model, kept)
    assert not model.config.enable_text
    with pytest.raises(ValueError, match=r"does not fit the network: \['text_alignment_head"):
        VGGTOmega.from_pretrained(tmp_path / "model.pt", config=omega_config)


def test_a_file_of_the_hub(omega_weights: dict[str, Tensor], omega_config: VGGTOmegaConfig, tmp_path: Path) -> None:
    """From the Hub's cache, laid out as its client leaves it; the repository has no config.json."""
    home = tmp_path / "models--facebook--VGGT-Omega"
    snapshot = home / "snapshots" / ("a" * 40) / "VGGT-Omega-1B-512"
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("a" * 40)
    torch.save(omega_weights, snapshot / "model.pt")
    options = {"cache_dir": tmp_path, "local_files_only": True, "config": omega_config}
    model = VGGTOmega.from_pretrained("facebook/VGGT-Omega", filename="VGGT-Omega-1B-512/model.pt", **options)
    assert_same(model, omega_weights)
    with pytest.raises(
        CheckpointError, match=r"cannot get the other\.pt of 'facebook/VGGT-Omega': .* the Hub is not asked"
    ):
        VGGTOmega.from_pretrained("facebook/VGGT-Omega", filename="other.pt", **options)


def test_a_saved_folder(make_omega: Make, omega_weights: dict[str, Tensor], tmp_path: Path) -> None:
    make_omega().save_pretrained(tmp_path / "saved", max_shard_size="4MB")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
    for load, kind in ((VGGTOmega.from_pretrained, VGGTOmega), (AutoModel.from_pretrained, VGGTOmegaInt8)):
        model = load(tmp_path / "saved", dtype=torch.float32)
        assert type(model) is kind
        assert_same(model, omega_weights)
    assert type(AutoConfig.from_pretrained(tmp_path / "saved")) is VGGTOmegaConfig
    less, info = VGGTOmega.from_pretrained(tmp_path / "saved", enable_camera=False, output_loading_info=True)
    assert less.camera_head is None
    assert not info["unexpected_keys"]


class Other:
    """What is no tensor, in a pickle."""


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ({"aggregator.camera_token": Other()}, CheckpointError, "cannot be read as plain tensors"),
        ({"epoch": torch.tensor(3.0)}, ValueError, "does not fit the network"),
        (b"nothing", CheckpointError, "truncated, damaged or no file of PyTorch"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n", CheckpointError, "LFS"),
    ],
    ids=["objects", "another network", "no pickle", "pointer"],
)
def test_files_that_are_none_of_the_network(
    omega_config: VGGTOmegaConfig, tmp_path: Path, content: Any, error: type[Exception], message: str
) -> None:
    file = tmp_path / "model.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(error, match=message):
        VGGTOmega.from_pretrained(file, config=omega_config)


def test_names_and_keywords_that_lead_nowhere(
    omega_config: VGGTOmegaConfig, tmp_path: Path, omega_folder: Path
) -> None:
    shutil.copy(omega_folder / "tiny_omega.safetensors", tmp_path / "model.safetensors")
    file = tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError, match="no file"):
        VGGTOmega.from_pretrained(tmp_path / "absent.pt")
    with pytest.raises(CheckpointError, match=r"leave out filename='x\.pt'"):
        VGGTOmega.from_pretrained(file, filename="x.pt")
    with pytest.raises(CheckpointError, match="unknown kind"):
        VGGTOmega.from_pretrained(omega_folder, filename="README.md")
    with pytest.raises(TypeError, match="takes neither recipe="):
        VGGTOmega.from_pretrained(file, recipe="int8_dynamic")
    with pytest.raises(TypeError, match="VGGTOmega is the plain network: recipe= and backend= belong to VGGTOmegaInt8"):
        VGGTOmega.from_pretrained(tmp_path, recipe="int8_dynamic")
    for keywords in ({"subfolder": "x"}, {"variant": "fp16"}):
        with pytest.raises(TypeError, match=f"{next(iter(keywords))}=.* chooses among files, but one is named"):
            VGGTOmega.from_pretrained(file, **keywords)
    with pytest.raises(TypeError, match="does not know file_name="):
        VGGTOmega.from_pretrained(file, file_name="x")
    with pytest.raises(TypeError, match="change fields in it"):
        VGGTOmega.from_pretrained(file, config=omega_config, enable_text=False)
