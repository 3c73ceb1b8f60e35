"""Runs of a few steps: they learn, stop when told, and go on as if they had never stopped."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vggt_int8.eval.metrics import depth_scores, pose_errors
from vggt_int8.model import VGGT
from vggt_int8.scenes import render_scenes, scene_seeds
from vggt_int8.training.__main__ import export, main, trained_model
from vggt_int8.training.captured import average_gradients
from vggt_int8.training.checkpoint import SHARD_BYTES, load_checkpoint, read_facts, save_checkpoint
from vggt_int8.training.config import FrameShape, TrainingConfig
from vggt_int8.training.data import StepScenes
from vggt_int8.training.loop import RunLimits, Trainer, check_run_folder
from vggt_int8.training.losses import scene_losses
from vggt_int8.training.measure import measure
from vggt_int8.training.plot import write_curves
from vggt_int8.training.start import build_optimizers, fresh_model

ONLY = RunLimits(validate_at_end=False)


def entries(out: Path, kind: str) -> list[dict]:
    lines = (out / "log.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


def test_overfitting_two_scenes_recovers_their_cameras_and_depth(tiny_config: TrainingConfig) -> None:
    """Converges far below the limits (errors of about 0.2 degrees, 2% of depth), whatever the seed or the rounding."""
    small = {"img_size": 16, "patch_size": 4, "camera_iterations": 2, "enable_point": False}
    batch = render_scenes(scene_seeds("free", range(2)), 3, (16, 16))
    model = fresh_model(dataclasses.replace(tiny_config, model={**tiny_config.model, **small})).train()
    rate, steps = 2e-3, 350
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


@pytest.mark.parametrize("muon_rate", [0.0, 3e-3])
def test_a_resumed_run_repeats_the_whole_one(tiny_config: TrainingConfig, tmp_path: Path, muon_rate: float) -> None:
    optimizer = dataclasses.replace(tiny_config.optimizer, muon_learning_rate=muon_rate)
    tiny_config = dataclasses.replace(tiny_config, optimizer=optimizer)
    Trainer(tiny_config, tmp_path / "whole").train(ONLY)
    part = dataclasses.replace(ONLY, max_steps=6)
    assert Trainer(tiny_config, tmp_path / "parts").train(part) == "max_steps reached"
    resumed = Trainer(tiny_config, tmp_path / "parts")
    assert resumed.step == 6
    assert resumed.train(ONLY) == "all steps are done"
    whole, parts = entries(tmp_path / "whole", "train"), entries(tmp_path / "parts", "train")
    assert [e["step"] for e in whole] == [e["step"] for e in parts] == [2, 4, 6, 8, 10, 12]
    assert [e["learning_rate"] for e in whole] == [e["learning_rate"] for e in parts]
    for a, b in zip(whole, parts, strict=True):
        # The moments pass through float8, so steps after the resume differ a little; data and schedule do not.
        assert a["total"] == pytest.approx(b["total"], rel=0 if a["step"] <= 6 else 0.02)


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
    assert "log_steps was 2, is 3 from here on" in capsys.readouterr().out
    shard = next((out / "checkpoint").glob("*.safetensors"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"state-01-of-01\.safetensors is damaged"):
        Trainer(tiny_config, out)
    shard.write_bytes(whole)
    (out / "checkpoint" / "trainer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"trainer\.json is missing"):
        Trainer(tiny_config, out)


def test_a_kill_between_two_renames_loses_no_checkpoint(tiny_config: TrainingConfig, tmp_path: Path) -> None:
    Trainer(tiny_config, tmp_path).train(dataclasses.replace(ONLY, max_steps=2))
    (tmp_path / "checkpoint").rename(tmp_path / ".checkpoint.previous")
    assert Trainer(tiny_config, tmp_path).step == 2


def test_half_a_line_in_a_log_is_named_and_stays_alone(tiny_config: TrainingConfig, tmp_path: Path) -> None:
    trainer = Trainer(tiny_config, tmp_path)
    trainer.log({"kind": "train", "step": 1, "total": 1.0})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    trainer.log({"kind": "train", "step": 2, "total": 0.5})
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3
    with pytest.raises(ValueError, match=r"log\.jsonl, line 2: .*killed"):
        write_curves([tmp_path / "log.jsonl"], tmp_path / "curves.svg")


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


def test_tracks_are_trained_too(tracking_config: TrainingConfig, tmp_path: Path) -> None:
    trainer = Trainer(tracking_config, tmp_path)
    before = trainer.network.track_head.tracker.updateformer.flow_head.weight.clone()
    trainer.train(dataclasses.replace(ONLY, max_steps=2))
    (entry,) = entries(tmp_path, "train")
    assert entry["track"] > 0
    assert not torch.equal(before, trainer.network.track_head.tracker.updateformer.flow_head.weight)


def test_steps_use_fresh_scenes_and_processes_different_ones(tiny_config: TrainingConfig) -> None:
    seen = []
    for rank in range(2):
        scenes = StepScenes(tiny_config.data, seed=0, first_step=3, last_step=9, rank=rank, world=2)
        assert len(scenes) == 6
        seen.append([scenes[i] for i in range(6)])
    assert [d.camera.shape for d in seen[0]] == [d.camera.shape for d in seen[1]]
    assert {d.camera.shape[1] for d in seen[0]} == {2, 4}
    seeds = torch.cat([d.seeds for d in seen[0] + seen[1]])
    assert len(seeds.unique()) == len(seeds)
    later = StepScenes(tiny_config.data, seed=0, first_step=5, last_step=9, rank=0, world=2)
    assert torch.equal(later[0].camera, seen[0][2].camera)


def test_a_checkpoint_is_small_and_faithful(tiny_config: TrainingConfig, tmp_path: Path) -> None:
    trainer = Trainer(tiny_config, tmp_path)
    trainer.train(dataclasses.replace(ONLY, max_steps=3))
    folder = trainer.checkpoint
    parameters = sum(p.numel() for p in trainer.network.parameters())
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size < 6.6 * parameters
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


def test_moments_take_the_layout_of_their_parameters(tiny_config: TrainingConfig, tmp_path: Path) -> None:
    """Fused AdamW refuses moments whose strides differ, and the dense heads' kernels are channels-last."""
    Trainer(tiny_config, tmp_path).train(dataclasses.replace(ONLY, max_steps=1))
    resumed = Trainer(tiny_config, tmp_path)
    kernel = resumed.network.depth_head.scratch.layer1_rn.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert {value.stride() for key, value in resumed.optimizers[0].state[kernel].items() if key != "step"} == {
        kernel.stride()
    }


def test_a_run_starts_from_the_weights_of_a_model(tiny_config: TrainingConfig, tmp_path: Path) -> None:
    fresh_model(dataclasses.replace(tiny_config, seed=5)).save_pretrained(tmp_path / "model")
    start = trained_model(tmp_path / "model", tiny_config)
    assert start.dtype == torch.float32
    trainer = Trainer(tiny_config, tmp_path / "run", start)
    assert trainer.network is start
    other = dataclasses.replace(tiny_config, model={**tiny_config.model, "camera_depth": 2})
    with pytest.raises(ValueError, match="camera_depth is 1, not 2"):
        trained_model(tmp_path / "model", other)


SHAPES = (FrameShape((32, 32)), FrameShape((16, 32), weight=2.0, pixel_aspect=(0.9, 1.1)))


def with_shapes(config: TrainingConfig) -> TrainingConfig:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, shapes=SHAPES))


def test_the_shape_of_a_step_follows_from_seed_and_step(tiny_config: TrainingConfig) -> None:
    data = with_shapes(tiny_config).data
    steps = 30
    scenes = StepScenes(data, seed=3, first_step=0, last_step=steps, rank=0, world=2)
    drawn = [scenes[step] for step in range(steps)]
    wide = [d for d in drawn if d.size == (16, 32)]
    assert {d.size for d in drawn} == {(32, 32), (16, 32)}
    assert 0.45 < len(wide) / steps < 0.9, "two of three, give or take 2.5 standard deviations"
    later = StepScenes(data, seed=3, first_step=20, last_step=steps, rank=1, world=2)
    assert [later[i].size for i in range(10)] == [d.size for d in drawn[20:]], "resumed, and on another process"
    other = StepScenes(data, seed=4, first_step=0, last_step=steps, rank=0, world=2)
    assert [other[i].size for i in range(10)] != [d.size for d in drawn[:10]]
    plain = StepScenes(tiny_config.data, seed=3, first_step=0, last_step=steps, rank=0, world=2)
    assert [plain[i].camera.shape for i in range(10)] == [d.camera.shape for d in drawn[:10]], "as without shapes"
    ratios = torch.cat([(d.intrinsic[..., 0, 0] / d.intrinsic[..., 1, 1])[:, 0] for d in wide])
    assert 0.9 <= ratios.min() < 0.93 < 1.07 < ratios.max() <= 1.1


def test_a_run_over_several_shapes_is_resumed_and_validated_on_each(
    tiny_config: TrainingConfig, tmp_path: Path
) -> None:
    config = with_shapes(tiny_config)
    Trainer(config, tmp_path / "whole").train(RunLimits())
    Trainer(config, tmp_path / "parts").train(dataclasses.replace(ONLY, max_steps=5))
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


def test_a_run_starts_within_its_parts_from_given_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["run", "--config", str(Path(__file__).parent / "tiny.toml"), "--out"]
    main([*run, str(tmp_path / "first"), "--total-steps", "4"])
    main(["export", "--out", str(tmp_path / "first"), "--to", str(tmp_path / "model")])
    given = ["--init", str(tmp_path / "model"), "--first-step", "4"]
    capsys.readouterr()
    main([*run, str(tmp_path / "second"), *given])
    assert "from step 4 to 6" in capsys.readouterr().out
    assert [entry["step"] for entry in entries(tmp_path / "second", "train")] == [6]
    with pytest.raises(ValueError, match=r"--first-step 6 must lie in the run: 0 \.\.\. 5"):
        main([*run, str(tmp_path / "third"), "--init", str(tmp_path / "model"), "--first-step", "6"])
    with pytest.raises(ValueError, match="given with --init"):
        main([*run, str(tmp_path / "third"), "--first-step", "4"])
    assert not (tmp_path / "third").exists()


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


def averaged(process: int, folder: str) -> None:
    """Run by two processes: their gradients are averaged, in each parameter's own memory layout."""
    where = f"file://{folder}/meeting"
    torch.distributed.init_process_group("gloo", init_method=where, rank=process, world_size=2)
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 2), torch.nn.Linear(3, 2))
    module[0].to(memory_format=torch.channels_last)
    kinds = [torch.channels_last, torch.contiguous_format, torch.contiguous_format]
    numbers = [torch.arange(p.numel()).view(p.shape) * 1.0 for p in module.parameters()]
    for parameter, number, kind in zip(module.parameters(), numbers, kinds, strict=False):  # the last one has none
        parameter.grad = (number * (process + 1)).contiguous(memory_format=kind)
    kept = [parameter.grad for parameter in module.parameters()]
    average_gradients(module.parameters())
    for parameter, number, old in zip(module.parameters(), numbers, kept, strict=True):
        assert parameter.grad is old
        assert old is None or torch.equal(old, number * 1.5)
    torch.distributed.destroy_process_group()


def test_gradients_of_processes_are_averaged(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(averaged, (str(tmp_path),), nprocs=2)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_learn_the_same_with_and_without_recorded_steps(tmp_path: Path) -> None:
    totals = []
    for graph in ("true", "false"):
        config, out = tmp_path / f"{graph}.toml", tmp_path / graph
        config.write_text(f"cuda_graph = {graph}\n" + (Path(__file__).parent / "tiny.toml").read_text())
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["-m", "vggt_int8.training", "run", "--config", str(config), "--out", str(out)]
        root = Path(__file__).parents[2]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=root)
        assert result.returncode == 0, result.stderr[-3000:]
        totals.append([entry["total"] for entry in entries(out, "train")])
    assert totals[0] == pytest.approx(totals[1], rel=1e-2)


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


def test_a_diverging_run_stops_and_says_so(tiny_config: TrainingConfig, tmp_path: Path) -> None:
    trainer = Trainer(tiny_config, tmp_path)
    with torch.no_grad():
        trainer.network.depth_head.norm.weight.fill_(torch.inf)
    with pytest.raises(FloatingPointError, match="step 2"):
        trainer.train(ONLY)
    assert not trainer.checkpoint.exists()


def test_export_and_curves(tiny_config: TrainingConfig, tmp_path: Path) -> None:
    trainer = Trainer(tiny_config, tmp_path / "run")
    trainer.train(RunLimits(max_steps=4))
    export(tmp_path / "run", tmp_path / "model")
    model = VGGT.from_pretrained(tmp_path / "model")
    reference = trainer.network.state_dict()
    assert all(torch.equal(value.half(), reference[name].half()) for name, value in model.state_dict().items())
    write_curves([tmp_path / "run" / "log.jsonl"], tmp_path / "curves.svg")
    svg = (tmp_path / "curves.svg").read_text()
    assert svg.startswith("<svg")
    assert "held-out pose AUC" in svg
    assert svg.count("<polyline") == 1 + 3 + 2 + 1 + 1


def test_the_command_line_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "accelerate launch" in capsys.readouterr().out


def test_a_run_of_two_parts_goes_on_in_the_part_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["run", "--config", str(Path(__file__).parent / "tiny.toml"), "--out"]
    main([*run, str(tmp_path / "whole")])
    printed = capsys.readouterr().out
    assert "from step 0 to 4" in printed
    assert "loss.camera was 5.0, is 50.0 from here on" in printed
    assert "from step 4 to 6" in printed
    whole = entries(tmp_path / "whole", "train")
    assert [entry["step"] for entry in whole] == [2, 4, 6]
    weights = [(entry["total"] - entry["depth"] - entry["point"]) / entry["camera"] for entry in whole]
    assert weights == pytest.approx([5, 5, 50], rel=1e-4)
    assert [entry["step"] for entry in entries(tmp_path / "whole", "validation")] == [4, 6]
    for total in (4, 5, 6):  # at the border, within the second part, to its end
        main([*run, str(tmp_path / "pieces"), "--total-steps", str(total)])
    assert read_facts(tmp_path / "pieces" / "checkpoint")["step"] == 6
    main([*run, str(tmp_path / "pieces")])
    assert "from step 6 to 6" in capsys.readouterr().out
    main([*run, str(tmp_path / "short"), "--max-minutes", "0.001"])
    assert read_facts(tmp_path / "short" / "checkpoint")["step"] == 1, "and no later part"


def test_a_schedule_that_begins_later_than_the_run_is_refused(tiny_config: TrainingConfig, tmp_path: Path) -> None:
    later = dataclasses.replace(tiny_config.optimizer, first_step=5)
    with pytest.raises(ValueError, match=r"begins at step 5, and .*run is at step 0"):
        Trainer(dataclasses.replace(tiny_config, optimizer=later), tmp_path / "run")


def test_two_processes_train_together(tmp_path: Path) -> None:
    """`accelerate launch` on two CPU processes: the same command as on two GPUs."""
    config = tmp_path / "run.toml"
    mini = (Path(__file__).parent / "tiny.toml").read_text()
    config.write_text(mini)
    root = Path(__file__).parents[2]
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "vggt_int8.training"]
    command += ["run", "--config", str(config), "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert read_facts(tmp_path / "out" / "checkpoint")["step"] == 6
    assert len(entries(tmp_path / "out", "train")) == 3


def test_what_no_training_wrote_is_neither_replaced_nor_added_to(tiny_config: TrainingConfig, tmp_path: Path) -> None:
    Trainer(tiny_config, tmp_path).train(dataclasses.replace(ONLY, max_steps=1))
    check_run_folder(tmp_path)
    trainer = Trainer(tiny_config, tmp_path)
    (tmp_path / "checkpoint" / "notes.txt").write_text("mine")
    trainer.save()
    assert (tmp_path / "checkpoint" / "notes.txt").read_text() == "mine"
    (tmp_path / "log.jsonl").write_text("mine\n")
    with pytest.raises(FileExistsError, match=r"is no training's log.*log\.jsonl"):
        check_run_folder(tmp_path)
    (tmp_path / "measure").mkdir()
    (tmp_path / "measure" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"measure holds thesis\.txt"):
        measure(tiny_config, tmp_path, 1.0)
    assert (tmp_path / "measure" / "thesis.txt").read_text() == "mine"
