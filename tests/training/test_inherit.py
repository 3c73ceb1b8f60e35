"""A new network that begins as a trained one: what carries over means the same there, and what cannot is named."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.training.runs import entries
from vggt_int8 import VGGT, VGGTOmega
from vggt_int8.model.layers import Block, apply_rope
from vggt_int8.model.omega.layers import OmegaAttention, apply_axial_rope, axial_rope_table
from vggt_int8.training.config import LossConfig, TeacherConfig, TrainingConfig
from vggt_int8.training.inherit import columns_before_b, inherit
from vggt_int8.training.run import train_run
from vggt_int8.training.start import fresh_model
from vggt_int8.training.teacher import find_teacher, token_error
from vggt_int8.training.trainer import Trainer


def with_model(config: TrainingConfig, **changes: object) -> TrainingConfig:
    return dataclasses.replace(config, model={**config.model, **changes})


@pytest.fixture
def source(tiny_config: TrainingConfig) -> VGGT:
    """A VGGT with biases everywhere but of keys, and without positions of patches, which have no counterpart."""
    network = fresh_model(with_model(tiny_config, num_register_tokens=3))
    assert isinstance(network, VGGT)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        network.aggregator.patch_embed.pos_embed[:, 1:] = 0.0
        for block in [*network.aggregator.frame_blocks, *network.aggregator.global_blocks]:
            block.attn.qkv.bias[64:128] = 0.0
    return network


@pytest.fixture
def omega(omega_training: TrainingConfig) -> VGGTOmega:
    network = fresh_model(with_model(omega_training, register_layers=[]))
    assert isinstance(network, VGGTOmega)
    return network


def close(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).norm() < 1e-4 * wanted.norm())


def test_turned_channels_are_those_of_the_same_wave() -> None:
    height, width, dim = 2, 3, 16
    x = torch.randn(1, 1, height * width, dim, generator=torch.Generator().manual_seed(0))
    axial = axial_rope_table(height, width, dim, device=torch.device("cpu"))
    row, column = axial[:, :, :4], axial[:, :, 4:8]
    turned = apply_rope(x, torch.cat([row, row, column, column], dim=-1))
    reorder = torch.vmap(columns_before_b, in_dims=0)
    assert close(apply_axial_rope(reorder(x[0, 0])[None, None], axial)[0, 0], reorder(turned[0, 0]))


@torch.no_grad()
def test_blocks_compute_the_same_where_nothing_is_turned(source: VGGT, omega: VGGTOmega) -> None:
    inherit(omega, source)
    x = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(1))
    theirs, ours = source.aggregator, omega.aggregator
    assert close(ours.frame_blocks[1](x), theirs.frame_blocks[1](x))
    assert close(ours.inter_frame_blocks[0](x, None, 1), theirs.global_blocks[0](x, None, 1))
    assert close(ours.patch_embed.blocks[0](x), theirs.patch_embed.blocks[0](x))
    assert torch.equal(ours.camera_token, theirs.camera_token)


@torch.no_grad()
def test_the_strongest_products_of_queries_and_keys_are_turned_least(source: VGGT, omega: VGGTOmega) -> None:
    inherit(omega, source)
    attention = omega.aggregator.patch_embed.blocks[0].attn
    assert isinstance(attention, OmegaAttention)
    query, key, _ = attention.qkv.weight.chunk(3)
    strength = (query.norm(dim=1) * key.norm(dim=1)).view(4, 16)
    by_wave = strength.mean(0)  # channels of wave i: i, 16 + i, 32 + i, 48 + i, the longest last
    assert (by_wave.diff() > 0).all()
    assert not attention.qkv.bias[64:128].any()


@torch.no_grad()
def test_chosen_blocks_and_the_heaviest_neurons(source: VGGT, omega_training: TrainingConfig) -> None:
    narrow = with_model(omega_training, depth=1, mlp_ratio=0.5, dpt_layers=[0, 0, 0, 0], register_layers=[])
    omega = fresh_model(narrow)
    mlp = source.aggregator.frame_blocks[1].mlp
    assert isinstance(source.aggregator.frame_blocks[1], Block)
    mlp.fc1.weight[::4] *= 10.0
    found = inherit(omega, source, layers=[1])
    kept = omega.aggregator.frame_blocks[0].mlp
    assert torch.equal(kept.fc1.weight, mlp.fc1.weight[::4])
    assert torch.equal(kept.fc1.bias, mlp.fc1.bias[::4])
    assert torch.equal(kept.fc2.weight, mlp.fc2.weight[:, ::4])
    assert found.numbers < found.of == sum(parameter.numel() for parameter in omega.parameters())
    assert {"dense_head.proj.weight", "dense_head.proj.bias"} <= set(found.fresh)
    assert "fresh in: aggregator.patch_embed, camera_head.camera_branch, " in str(found)
    assert not [name for name in found.taken if name.startswith("camera_head.")]


def test_a_network_of_the_same_family_takes_all(source: VGGT, tiny_config: TrainingConfig) -> None:
    twin = fresh_model(with_model(tiny_config, num_register_tokens=3))
    found = inherit(twin, source)
    assert found.fresh == ()
    assert str(found).endswith("fresh in: nothing")
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), source.parameters(), strict=True))


def test_what_cannot_begin_so_is_named(
    source: VGGT, omega: VGGTOmega, tiny_config: TrainingConfig, omega_training: TrainingConfig
) -> None:
    before = {name: parameter.clone() for name, parameter in omega.named_parameters()}
    with pytest.raises(ValueError, match=r"layers is \[0, 2\]: it can name 2 of the blocks 0 ... 1"):
        inherit(omega, source, layers=[0, 2])
    with pytest.raises(ValueError, match=r"encoder_blocks is \[0, 0\]: it can name 1 of"):
        inherit(omega, source, encoder_blocks=[0, 0])
    with pytest.raises(ValueError, match=r"its num_heads makes heads of 64 channels, that of \[model\] heads of 32"):
        inherit(fresh_model(with_model(omega_training, num_heads=2)), source)
    with pytest.raises(ValueError, match="a vggt cannot begin as a vggt_omega"):
        inherit(fresh_model(tiny_config), omega)
    assert all(torch.equal(parameter, before[name]) for name, parameter in omega.named_parameters())


def test_nothing_that_fits_is_an_error(source: VGGT, omega_training: TrainingConfig) -> None:
    wide = with_model(omega_training, embed_dim=128, num_heads=2, encoder_num_heads=2)
    with pytest.raises(ValueError, match=r"no matrix of its aggregator has the name and shape of one of \[model\]"):
        inherit(fresh_model(wide), source)


@pytest.fixture
def taught(omega_training: TrainingConfig, source: VGGT, tmp_path: Path) -> TrainingConfig:
    source.save_pretrained(tmp_path / "teacher")
    teacher = TeacherConfig(str(tmp_path / "teacher"), layers=(1, 0))
    return dataclasses.replace(omega_training, teacher=teacher, loss=LossConfig(teacher=2.0))


@pytest.mark.slow
def test_a_run_begins_as_its_teacher_and_follows_it(
    taught: TrainingConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    short = dataclasses.replace(taught, optimizer=dataclasses.replace(taught.optimizer, total_steps=4), log_steps=1)
    train_run([short], out, max_minutes=0.0)
    assert "begins as " in (said := capsys.readouterr().err)
    assert "M parameters; fresh in: aggregator.patch_embed, camera_head.camera_branch" in said
    train_run([short], out)
    assert "begins as " not in capsys.readouterr().err
    log = entries(out, "train")
    assert [entry["step"] for entry in log] == [1, 2, 3, 4]
    assert 0 < log[0]["teacher"] < 1
    terms = {name: getattr(short.loss, name) * log[0][name] for name in ("camera", "depth", "point", "teacher")}
    assert math.isclose(log[0]["total"], sum(terms.values()), rel_tol=1e-5)


def test_a_student_that_is_its_teacher_has_no_error(source: VGGT, taught: TrainingConfig, tmp_path: Path) -> None:
    same = {**taught.model, "model_type": "vggt"}
    del same["register_layers"]
    config = dataclasses.replace(taught, model=same, teacher=dataclasses.replace(taught.teacher, layers=()))
    trainer = Trainer(config, tmp_path / "run", source)
    losses = trainer.losses(trainer.prepare(next(trainer.items(1))))
    assert losses["teacher"] < 1e-9
    assert token_error(torch.ones(2, 3, 4), 2 * torch.ones(2, 3, 4)) == 0.25


def test_a_teacher_of_other_tokens_is_refused(taught: TrainingConfig) -> None:
    device = torch.device("cpu")
    assert find_teacher(dataclasses.replace(taught, loss=LossConfig()), device) is None
    with pytest.raises(ValueError, match="its num_register_tokens is 3, not 5"):
        find_teacher(with_model(taught, num_register_tokens=5), device)
    with pytest.raises(ValueError, match=r"loss.teacher is 2.0, but \[teacher\] names no model"):
        dataclasses.replace(taught, teacher=TeacherConfig())
