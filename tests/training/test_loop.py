"""Runs of a few steps: they learn, stop when told, and go on as if they had never stopped."""

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.training.runs import ONLY, entries, with_shapes
from vggt_int8.eval.metrics import depth_scores, pose_errors
from vggt_int8.scenes import render_scenes, scene_seeds
from vggt_int8.training.checkpoint import read_facts
from vggt_int8.training.config import TrainingConfig
from vggt_int8.training.loop import RunLimits
from vggt_int8.training.losses import scene_losses
from vggt_int8.training.plot import write_curves
from vggt_int8.training.run import trained_model
from vggt_int8.training.start import build_optimizers, fresh_model
from vggt_int8.training.trainer import Trainer


@pytest.mark.slow
def test_overfitting_two_scenes_recovers_their_cameras_and_depth(tiny_config: TrainingConfig) -> None:
    """Converges far below the limits (errors of about 0.2 degrees, 2% of depth), whatever the seed or the rounding."""
    small = {"img_size": 16, "patch_size": 4, "camera_iterations": 2, "enable_point": False}
    batch = render_scenes(scene_seeds("free", range(2)), 3, (16, 16))
    model = fresh_model(dataclasses.replace(tiny_config, model={**tiny_config.model, **small})).train()
    rate, steps = 3e-3, 260
    (optimizer,) = build_optimizers(model, dataclasses.replace(tiny_config.optimizer, learning_rate=rate))
    first = None
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 20) * (1 - step / steps)
        output = model(batch.images)
        losses = scene_losses(output, batch, tiny_config.loss)
        losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        first = first or {name: value.item() for name, value in losses.items()}
    rotation, translation = pose_errors(output.extrinsic.detach(), batch.extrinsic)
    assert losses["camera"].item() < 0.1 * first["camera"]
    assert rotation.median() < 2
    assert translation.median() < 10
    assert depth_scores(output.depth[..., 0].detach(), batch.depth, batch.valid).abs_rel < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("muon_rate", [0.0, 3e-3])
def test_a_resumed_run_repeats_the_whole_one(tiny_config: TrainingConfig, tmp_path: Path, muon_rate: float) -> None:
    optimizer = dataclasses.replace(tiny_config.optimizer, muon_learning_rate=muon_rate, total_steps=6)
    tiny_config = dataclasses.replace(tiny_config, optimizer=optimizer)
    Trainer(tiny_config, tmp_path / "whole").train(ONLY)
    part = dataclasses.replace(ONLY, max_steps=4)
    assert Trainer(tiny_config, tmp_path / "parts").train(part) == "max_steps reached"
    resumed = Trainer(tiny_config, tmp_path / "parts")
    assert resumed.step == 4
    assert resumed.train(ONLY) == "all steps are done"
    whole, parts = entries(tmp_path / "whole", "train"), entries(tmp_path / "parts", "train")
    assert [e["step"] for e in whole] == [e["step"] for e in parts] == [2, 4, 6]
    assert [e["learning_rate"] for e in whole] == [e["learning_rate"] for e in parts]
    for a, b in zip(whole, parts, strict=True):
        # The moments pass through float8, so steps after the resume differ a little; data and schedule do not.
        assert a["total"] == pytest.approx(b["total"], rel=0 if a["step"] <= 4 else 0.02)


@pytest.mark.slow
def test_what_cannot_be_gone_on_with_is_named(
    tiny_config: TrainingConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, part = tmp_path / "run", dataclasses.replace(ONLY, max_steps=2)
    Trainer(tiny_config, out).train(part)
    other = dataclasses.replace(tiny_config, model={**tiny_config.model, "camera_iterations": 2})
    with pytest.raises(ValueError, match=r"checkpoint is of a network with camera_iterations 4, not 2"):
        Trainer(other, out)
    capsys.readouterr()
    Trainer(dataclasses.replace(tiny_config, log_steps=3), out)
    assert "log_steps was 2, is 3 from here on" in capsys.readouterr().err
    shard = next((out / "checkpoint").glob("*.safetensors"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"state-01-of-01\.safetensors is damaged"):
        Trainer(tiny_config, out)
    shard.write_bytes(whole)
    (out / "checkpoint" / "trainer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"trainer\.json is missing"):
        Trainer(tiny_config, out)


@pytest.mark.slow
def test_time_limit_and_validation(tiny_config: TrainingConfig, tmp_path: Path) -> None:
    trainer = Trainer(tiny_config, tmp_path)
    assert trainer.train(RunLimits(max_minutes=0.01)) == "the time is over (max_minutes)"
    assert trainer.step == 1
    (scores,) = entries(tmp_path, "validation")
    assert scores["scenes"] == 2
    assert 0 <= scores["2 views"]["auc_30"] <= 100
    assert scores["2 views"]["abs_rel"] > 0
    assert read_facts(trainer.checkpoint)["step"] == 1
    assert trainer.network.training


@pytest.mark.slow
def test_tracks_are_trained_too(tracking_config: TrainingConfig, tmp_path: Path) -> None:
    trainer = Trainer(tracking_config, tmp_path)
    before = trainer.network.track_head.tracker.updateformer.flow_head.weight.clone()
    trainer.train(dataclasses.replace(ONLY, max_steps=2))
    (entry,) = entries(tmp_path, "train")
    assert entry["track"] > 0
    assert not torch.equal(before, trainer.network.track_head.tracker.updateformer.flow_head.weight)


def test_a_run_starts_from_the_weights_of_a_model(tiny_config: TrainingConfig, tmp_path: Path) -> None:
    fresh_model(dataclasses.replace(tiny_config, seed=5)).save_pretrained(tmp_path / "model")
    start = trained_model(tmp_path / "model", tiny_config)
    assert start.dtype == torch.float32
    trainer = Trainer(tiny_config, tmp_path / "run", start)
    assert trainer.network is start
    other = dataclasses.replace(tiny_config, model={**tiny_config.model, "camera_depth": 2})
    with pytest.raises(ValueError, match="camera_depth is 1, not 2"):
        trained_model(tmp_path / "model", other)


@pytest.mark.slow
def test_a_run_over_several_shapes_is_resumed_and_validated_on_each(
    tiny_config: TrainingConfig, tmp_path: Path
) -> None:
    optimizer = dataclasses.replace(tiny_config.optimizer, total_steps=6)
    config = with_shapes(dataclasses.replace(tiny_config, optimizer=optimizer))
    Trainer(config, tmp_path / "whole").train(RunLimits())
    Trainer(config, tmp_path / "parts").train(dataclasses.replace(ONLY, max_steps=3))
    Trainer(config, tmp_path / "parts").train(ONLY)
    whole, parts = (entries(tmp_path / name, "train") for name in ("whole", "parts"))
    assert [e["total"] for e in whole] == pytest.approx([e["total"] for e in parts], rel=0.02)
    (scores,) = entries(tmp_path / "whole", "validation")
    rows = {name: row for name, row in scores.items() if isinstance(row, dict)}
    assert list(rows) == ["2 views", "2 views of 16 x 32"]
    assert all({"auc_30", "abs_rel", "focal_ratio", "focal_ratio_105"} <= row.keys() for row in rows.values())
    write_curves([tmp_path / "whole" / "log.jsonl"], tmp_path / "curves.svg")
    svg = (tmp_path / "curves.svg").read_text()
    assert "focal_ratio_105 2 views of 16 x 32" in svg
    assert "auc_30 2 views of 16 x 32" not in svg


@pytest.mark.gpu
@pytest.mark.parametrize("shapes", [False, True])
def test_recorded_steps_learn_what_eager_steps_do(tiny_config: TrainingConfig, tmp_path: Path, shapes: bool) -> None:
    tiny_config = with_shapes(tiny_config) if shapes else tiny_config
    totals = []
    for graph in (False, True):
        config = dataclasses.replace(tiny_config, cuda_graph=graph)
        Trainer(config, tmp_path / str(graph)).train(ONLY)
        totals.append([entry["total"] for entry in entries(tmp_path / str(graph), "train")])
    assert totals[1] == pytest.approx(totals[0], rel=1e-2)


@pytest.mark.slow
def test_a_diverging_run_stops_and_says_so(tiny_config: TrainingConfig, tmp_path: Path) -> None:
    trainer = Trainer(tiny_config, tmp_path)
    with torch.no_grad():
        trainer.network.depth_head.norm.weight.fill_(torch.inf)
    with pytest.raises(FloatingPointError, match="step 2"):
        trainer.train(ONLY)
    assert not trainer.checkpoint.exists()


def test_a_schedule_that_begins_later_than_the_run_is_refused(tiny_config: TrainingConfig, tmp_path: Path) -> None:
    later = dataclasses.replace(tiny_config.optimizer, first_step=5)
    with pytest.raises(ValueError, match=r"begins at step 5, and .*run is at step 0"):
        Trainer(dataclasses.replace(tiny_config, optimizer=later), tmp_path / "run")
