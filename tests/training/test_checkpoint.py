"""Checkpoints of a run: small, faithful, never replaced by a broken one, and whole after a kill."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.kills import killed_before
from tests.training.runs import ONLY
from vggt_int8.training.checkpoint import (
    SHARD_BYTES,
    find_checkpoint,
    least_bytes,
    load_checkpoint,
    read_config,
    read_facts,
    save_checkpoint,
)
from vggt_int8.training.config import TrainingConfig
from vggt_int8.training.start import build_optimizers, fresh_model
from vggt_int8.training.trainer import Trainer


def one_layer(step: int) -> nn.Linear:
    layer = nn.Linear(3, 2)
    nn.init.constant_(layer.weight, step)
    return layer


@pytest.mark.slow
@pytest.mark.parametrize("before", [None, 1])
def test_a_kill_before_any_step_of_a_save_loses_no_checkpoint(tmp_path: Path, before: int | None) -> None:
    alone: Any = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None)
    seen = []
    for moment in range(100):
        folder = tmp_path / str(moment) / "checkpoint"
        folder.parent.mkdir()
        if before is not None:
            save_checkpoint(folder, one_layer(before), [], {"step": before})
        new = one_layer(2)
        killed = killed_before(moment, lambda: save_checkpoint(folder, new, [], {"step": 2}))  # noqa: B023
        found, layer = None, one_layer(0)
        if find_checkpoint(alone, folder):
            found = load_checkpoint(folder, layer)["step"]
            assert (layer.weight == found).all()
        seen.append(found)
        if not killed:
            break
    assert set(seen) == {before, 2}
    assert seen == [before] * seen.count(before) + [2] * seen.count(2), "first the old one, then the new one"


@pytest.mark.slow
def test_a_checkpoint_is_small_and_faithful(tiny_config: TrainingConfig, tmp_path: Path) -> None:
    trainer = Trainer(tiny_config, tmp_path)
    trainer.train(dataclasses.replace(ONLY, max_steps=3))
    folder = trainer.checkpoint
    parameters = sum(p.numel() for p in trainer.network.parameters())
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert least_bytes(trainer.network) <= size < 6.6 * parameters
    model = fresh_model(dataclasses.replace(tiny_config, seed=9))
    (optimizer,) = build_optimizers(model, tiny_config.optimizer)
    assert load_checkpoint(folder, model, [optimizer])["step"] == 3
    saved = dict(trainer.network.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, saved[name])
        if parameter.requires_grad:
            was, now = trainer.optimizers[0].state[saved[name]], optimizer.state[parameter]
            assert now["step"] == was["step"] == 3
            torch.testing.assert_close(now["exp_avg"], was["exp_avg"], atol=was["exp_avg"].abs().max() / 200, rtol=0.07)
            assert ((now["exp_avg_sq"] > 0) | (was["exp_avg_sq"] < 1e-20)).all(), "a zero would blow the next step up"


def test_room_for_a_checkpoint_is_needed_before_the_first_step(
    tiny_config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(tiny_config, tmp_path / "run")
    monkeypatch.setattr("vggt_int8.disk.shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match="No space left on device: about"):
        trainer.train(ONLY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_muon_takes_the_matrices_of_the_blocks_and_its_moments_are_kept(
    tiny_config: TrainingConfig, tmp_path: Path
) -> None:
    optimizer = dataclasses.replace(tiny_config.optimizer, muon_learning_rate=3e-3)
    config = dataclasses.replace(tiny_config, optimizer=optimizer)
    trainer = Trainer(config, tmp_path)
    trainer.train(dataclasses.replace(ONLY, max_steps=2))
    adamw, muon = trainer.optimizers
    names = {id(parameter): name for name, parameter in trainer.network.named_parameters()}
    of = [{names[id(p)] for group in o.param_groups for p in group["params"]} for o in (adamw, muon)]
    assert not of[0] & of[1]
    assert of[0] | of[1] == {name for name, p in trainer.network.named_parameters() if p.requires_grad}
    assert "aggregator.frame_blocks.0.attn.qkv.weight" in of[1]
    assert {"camera_head.embed_pose.weight", "camera_head.pose_branch.fc2.weight"} <= of[0], "9 wide"
    resumed = Trainer(config, tmp_path)
    for before, after in zip(
        muon.param_groups[0]["params"], resumed.optimizers[1].param_groups[0]["params"], strict=True
    ):
        was, now = (o.state[p]["momentum_buffer"] for o, p in ((muon, before), (resumed.optimizers[1], after)))
        torch.testing.assert_close(now, was, atol=was.abs().max().item() / 200, rtol=0.07)
    with pytest.raises(ValueError, match=r"saved moments of .* are not AdamW's"):
        Trainer(tiny_config, tmp_path)


@pytest.mark.slow
def test_moments_take_the_layout_of_their_parameters(tiny_config: TrainingConfig, tmp_path: Path) -> None:
    """Fused AdamW refuses moments whose strides differ, and the dense heads' kernels are channels-last."""
    Trainer(tiny_config, tmp_path).train(dataclasses.replace(ONLY, max_steps=1))
    resumed = Trainer(tiny_config, tmp_path)
    kernel = resumed.network.depth_head.scratch.layer1_rn.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert {value.stride() for key, value in resumed.optimizers[0].state[kernel].items() if key != "step"} == {
        kernel.stride()
    }


def test_shards_stay_small(tmp_path: Path) -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(5)))
    save_checkpoint(tmp_path / "c", model, [torch.optim.AdamW(model.parameters())], {"step": 0})
    shards = sorted((tmp_path / "c").glob("*.safetensors"))
    assert [path.name for path in shards] == ["state-01-of-02.safetensors", "state-02-of-02.safetensors"]
    assert max(path.stat().st_size for path in shards) <= SHARD_BYTES


def test_a_broken_model_never_replaces_a_checkpoint(tmp_path: Path) -> None:
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    save_checkpoint(tmp_path / "c", model, [optimizer], {"step": 1})
    with torch.no_grad():
        model.bias[2] = torch.nan
    with pytest.raises(ValueError, match="bias is not finite"):
        save_checkpoint(tmp_path / "c", model, [optimizer], {"step": 2})
    assert read_facts(tmp_path / "c")["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_bad_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"trainer.json is missing"):
        read_facts(tmp_path)
    model = torch.nn.Linear(4, 4)
    save_checkpoint(tmp_path / "c", model, [torch.optim.AdamW(model.parameters())], {"step": 1})
    with pytest.raises(ValueError, match="does not fit this model"):
        load_checkpoint(tmp_path / "c", torch.nn.Linear(4, 4, bias=False))
    with pytest.raises(ValueError, match=r"weight is \(4, 4\), the model's \(4, 5\)"):
        load_checkpoint(tmp_path / "c", torch.nn.Linear(5, 4))
    next((tmp_path / "c").glob("*.safetensors")).unlink()
    with pytest.raises(FileNotFoundError, match="is incomplete"):
        load_checkpoint(tmp_path / "c", model)
    facts = tmp_path / "c" / "trainer.json"
    facts.write_text(facts.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(ValueError, match="format_version 2"):
        read_facts(tmp_path / "c")
    damaged = {"[1]": "it holds", '{"format_version": 1}': "its step is None", "{": "is damaged"}
    damaged['{"format_version": 1, "step": 1, "shards": "2"}'] = "its shards is '2'"
    for content, message in damaged.items():
        facts.write_text(content)
        with pytest.raises(ValueError, match=rf"trainer\.json .*{message}"):
            read_facts(tmp_path / "c")
    for config in ("", ', "config": 3', ', "config": {"model": 3}', ', "config": {}'):
        facts.write_text(f'{{"format_version": 1, "step": 1, "shards": 1{config}}}')
        with pytest.raises(ValueError, match=r"trainer\.json .* config .*"):
            read_config(tmp_path / "c")


@pytest.mark.parametrize(
    "change",
    [
        {"shards": 10**9},
        {"shards": -1},
        {"shards": "1"},
        {"shards": None},
        {"step": -1},
        {"step": 1.5},
        {"step": None},
        {"seconds": "long"},
    ],
)
def test_facts_that_are_none_are_refused_before_a_tensor_is_read(tmp_path: Path, change: dict[str, object]) -> None:
    model = torch.nn.Linear(4, 4)
    save_checkpoint(tmp_path / "c", model, [], {"step": 1, "seconds": 2.5, "config": {}})
    path = tmp_path / "c" / "trainer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"trainer.json is damaged"):
        read_facts(tmp_path / "c")


def test_a_damaged_checkpoint_changes_nothing(tmp_path: Path) -> None:
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path / "c", model, [optimizer], {"step": 1})
    (shard,) = (tmp_path / "c").glob("*.safetensors")
    sound = load_file(shard)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = optimizer.state[model.bias]["exp_avg"]
    for change in (
        {"weight.bias": torch.full((4,), torch.nan)},
        {"weight.bias": torch.ones(4, dtype=torch.int32)},
        {"first.bias.scale": torch.ones(1)},
        {"first.bias.scale": torch.full((1, 1), torch.inf)},
        {"first.bias": torch.ones(8).to(torch.float8_e4m3fn)},
    ):
        save_file({name: torch.zeros_like(value) for name, value in sound.items()} | change, shard)
        with pytest.raises(ValueError, match="damaged"):
            load_checkpoint(tmp_path / "c", model, [optimizer])
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert optimizer.state[model.bias]["exp_avg"] is state
    save_file({name: value for name, value in sound.items() if name != "first.bias.scale"}, shard)
    with pytest.raises(ValueError, match=r"first.bias are damaged: they have no scale"):
        load_checkpoint(tmp_path / "c", model, [optimizer])
    save_file(sound, shard)
    assert load_checkpoint(tmp_path / "c", model, [optimizer])["step"] == 1
