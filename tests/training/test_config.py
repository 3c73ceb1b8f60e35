"""Configuration files: what is unknown or impossible is named."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vggt_int8.model import VGGT
from vggt_int8.training.config import LossConfig, TrainingConfig, config_from_table, end_run_at, load_run
from vggt_int8.training.sections import FrameShape, OptimizerConfig
from vggt_int8.training.start import build_optimizers, fresh_model, rate_factor

ROOT = Path(__file__).parents[2]
MINI = ROOT / "vggt_int8/assets/mini/training.toml"
RESULTS = ROOT / "benchmarks/results/h200"


def test_the_embedded_model_fits_its_limits() -> None:
    config = load_run(MINI)[0]
    with torch.device("meta"):
        model = VGGT(config.network())
    # 64 KiB for the file's header.
    assert 2 * sum(p.numel() for p in model.parameters()) + 2**16 <= 16e6
    assert config.model["embed_dim"] // config.model["num_heads"] == 64
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module.out_features != 9 and module.in_features != 9:
            assert module.in_features % 32 == module.out_features % 32 == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 256}, "seed must be at least 0 and at most 255, got 256"),
        ({"log_steps": 0}, "log_steps must be at least 1, got 0"),
        ({"cuda_graph": "no"}, "cuda_graph must be bool, got 'no'"),
        ({"compile": ["x" * 100_000]}, r"compile has 'x+\.\.\.; it can name"),
        ({"mixed_precision": "x" * 100_000}, r"mixed_precision must be .*, got 'x+\.\.\.$"),
        ({"y" * 100_000: 1}, r"the file has unknown keys 'y+\.\.\.; it can have"),
        ({"model": {"y" * 100_000: 1}}, r"\[model\] has unknown keys 'y+\.\.\.$"),
        ({"compile": "render"}, "compile must be .*, got 'render'"),
        ({"validation": {"views": [1]}}, "validation.views must be at least 2, got 1"),
        ({"optimizer": {"total_steps": "4"}}, "total_steps must be int, got '4'"),
        ({"optimizer": {"first_step": -1}}, "optimizer.first_step must be at least 0, got -1"),
        ({"optimizer": {"decay_share": 2}}, "decay_share must be at least 0 and at most 1, got 2"),
        ({"optimizer": {"learning_rate": -1e-3}}, "optimizer.learning_rate must be at least 0, got -0.001"),
        ({"optimizer": {"muon_weight_decay": -1}}, "optimizer.muon_weight_decay must be at least 0, got -1"),
        ({"optimizer": {"warmup_steps": -1}}, "optimizer.warmup_steps must be at least 0, got -1"),
        ({"optimizer": {"clip_norm": 0}}, "clip_norm must be above 0, and .* got 0 and"),
        ({"optimizer": {"betas": [0.9, 1]}}, r"betas from 0 to below 1, got 1.0 and \[0.9, 1\]"),
        ({"loss": {"camera": -5}}, "loss.camera must be at least 0, got -5"),
        ({"data": {"tracks": -1}}, "data.tracks must be at least 0, got -1"),
        ({"validation": {"frames_per_batch": 0}}, "validation.frames_per_batch must be at least 1, got 0"),
        ({"loss": {"alpha": 10**400}}, r"alpha must be float, got 10+\.\.\.$"),
        ({"loss": {"alpha": float("nan")}}, "alpha must be float, got nan"),
        ({"loss": {"alpha": "x" * 100_000}}, r"alpha must be float, got 'x+\.\.\.$"),
        ({"data": {"size": [32]}}, r"size must be .*, got \(32,\)"),
        ({"data": {"size": [112, 60]}}, r"data.size \[112, 60\] must be multiples of the patch size 14"),
        ({"data": {"shapes": [{"size": [112, 60]}]}}, r"data.shapes\[0\].size \[112, 60\] must be multiples"),
        ({"data": {"shapes": [{"size": [28, 28]}] * 2}}, r"data.shapes has \[28, 28\] more than once"),
        ({"data": {"shapes": [{"size": [28, 28], "weight": 0}]}}, "weight must be above 0, got 0"),
        ({"data": {"shapes": [{"size": [28, 28], "pixel_aspect": [2, 1]}]}}, r"the smaller first, got \[2, 1\]"),
        ({"data": {"shapes": [{"weight": 2}]}}, r"\[data\] shapes\[0\] needs a size"),
        ({"data": {"shapes": [{"size": [28, 28], "wieght": 2}]}}, r"shapes\[0\] has unknown keys 'wieght'"),
        ({"data": {"shapes": [[28, 28]]}}, r"shapes\[0\] must be a table, got \[28, 28\]"),
        ({"data": {"shapes": 3}}, "shapes must be .*, got 3"),
        ({"model": {"mlp_ratoi": 2.0}}, "unknown keys 'mlp_ratoi'"),
    ],
)
def test_values_out_of_range_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_table({"model": {}, **change})


def test_a_configuration_survives_json(tiny_config: TrainingConfig) -> None:
    shapes = (FrameShape((32, 32)), FrameShape((16, 32), 2.0, (0.9, 1.1)))
    for data in (tiny_config.data, dataclasses.replace(tiny_config.data, shapes=shapes)):
        config = dataclasses.replace(tiny_config, data=data)
        assert config_from_table(json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed =", r"Invalid value"),
        ("seed = 1", r"there is no \[model\] table"),
        ("sede = 1\n[model]", "unknown keys 'sede'"),
        ("[model]\n[data]\nframe = 3", r"\[data\] has unknown keys 'frame'"),
        ("[model]\n[data]\nviews = [5]\nframes_per_step = 12", r"data.views \[5\]"),
        ('compile = ["all"]\n[model]', "compile has"),
        ('mixed_precision = "fp16"\n[model]', "'fp16'"),
        ("[model]\nenable_track = false\n[data]\ntracks = 4", "no track head"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_run(path)
    assert "run.toml" in str(caught.value)


def test_schedule_warms_up_stays_and_ends_at_zero() -> None:
    config = OptimizerConfig(warmup_steps=10, total_steps=100, decay_share=0.3)
    factors = [rate_factor(step, config) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[10:71] == [1.0] * 61
    assert all(a > b for a, b in itertools.pairwise(factors[70:]))
    assert factors[100] == 0


def test_a_part_has_a_schedule_of_its_own() -> None:
    first = OptimizerConfig(warmup_steps=10, total_steps=100)
    later = OptimizerConfig(warmup_steps=10, first_step=300, total_steps=400)
    assert [rate_factor(300 + step, later) for step in range(101)] == [rate_factor(step, first) for step in range(101)]
    with pytest.raises(ValueError, match="total_steps must be above 300, got 300"):
        OptimizerConfig(first_step=300, total_steps=300)


PARTS = """
seed = 7
[model]
[optimizer]
total_steps = 100
learning_rate = 1e-2
[loss]
depth = 2.0
[[then]]
optimizer = { total_steps = 300, decay_share = 1.0 }
loss = { camera = 10.0 }
[[then]]
log_steps = 5
optimizer = { total_steps = 400, learning_rate = 1e-3 }
"""


def test_a_part_keeps_what_it_does_not_name(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(PARTS)
    parts = load_run(path)
    assert [(part.optimizer.first_step, part.optimizer.total_steps) for part in parts] == [
        (0, 100),
        (100, 300),
        (300, 400),
    ]
    assert [part.optimizer.learning_rate for part in parts] == [1e-2, 1e-2, 1e-3]
    assert [part.optimizer.decay_share for part in parts] == [OptimizerConfig().decay_share, 1.0, 1.0]
    assert [part.loss.camera for part in parts] == [LossConfig().camera, 10.0, 10.0]
    assert {(part.seed, part.loss.depth) for part in parts} == {(7, 2.0)}
    assert [part.log_steps for part in parts] == [50, 50, 5]


@pytest.mark.parametrize(
    ("total", "ends"),
    [(50, [50]), (100, [100]), (101, [100, 101]), (400, [100, 300, 400]), (900, [100, 300, 900])],
)
def test_a_run_may_end_earlier_or_later(tmp_path: Path, total: int, ends: list[int]) -> None:
    path = tmp_path / "run.toml"
    path.write_text(PARTS)
    parts = end_run_at(load_run(path), total)
    assert [part.optimizer.total_steps for part in parts] == ends
    with pytest.raises(ValueError, match="total_steps must be above 0, got 0"):
        end_run_at(parts, 0)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("[then]\nseed = 1", r"written \[\[then\]\]"),
        ("then = [1]", r"written \[\[then\]\]"),
        ("[[then]]\nseed = 1", r"number 1: optimizer.total_steps is missing"),
        (
            "[[then]]\noptimizer = { total_steps = 9, learning_rate = -1 }",
            r"number 1: optimizer.learning_rate must be at least 0, got -1",
        ),
        ("[[then]]\noptimizer = 3", r"number 1: \[optimizer\] must be a table, got 3"),
        (
            "[[then]]\noptimizer = { total_steps = 9, first_step = 5 }",
            r"number 1: optimizer.first_step .* leave it out",
        ),
        ("[[then]]\noptimizer = { total_steps = 4 }", r"number 1: total_steps must be above 4, got 4"),
        ("[[then]]\noptimizer = { total_steps = 9 }\nmodel = {}", r"number 1: .* leave `model` out"),
        (
            "[[then]]\noptimizer = { total_steps = 9 }\nlog_steps = {}",
            r"number 1: the file: log_steps must be int, got",
        ),
        ("[[then]]\noptimizer = { total_steps = 9 }\nlos = {}", r"number 1: .* unknown keys 'los'"),
        ("[[then]]\noptimizer = { total_steps = 9, rate = 1 }", r"number 1: \[optimizer\] has unknown keys 'rate'"),
        (
            "[[then]]\noptimizer = { total_steps = 9 }\n[[then]]\noptimizer = { total_steps = 8 }",
            r"number 2: total_steps must be above 9, got 8",
        ),
    ],
)
def test_mistakes_in_a_part_are_named(tmp_path: Path, part: str, message: str) -> None:
    path = tmp_path / "run.toml"
    first = "model = {}\nlog_steps = 3\noptimizer = { total_steps = 4 }\n"
    path.write_text(first + part)
    with pytest.raises(ValueError, match=message) as caught:
        load_run(path)
    assert "run.toml" in str(caught.value)


def test_the_embedded_models_file_has_the_rates_of_its_log() -> None:
    parts = load_run(MINI)
    log = [json.loads(line) for line in (RESULTS / "training.jsonl").read_text().splitlines()]
    for entry in (entry for entry in log if entry["kind"] == "train"):
        part = next(part.optimizer for part in parts if part.optimizer.total_steps > entry["step"])
        rate = part.learning_rate * rate_factor(entry["step"], part)
        assert entry["learning_rate"] == pytest.approx(rate), f"step {entry['step']}"
    assert log[-1]["kind"] == "validation"
    assert log[-1]["step"] == parts[-1].optimizer.total_steps


def test_fresh_models_depend_on_the_seed_alone(tiny_config: TrainingConfig) -> None:
    torch.manual_seed(1)
    first = fresh_model(tiny_config).state_dict()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = fresh_model(tiny_config).state_dict()
    assert torch.equal(before, torch.get_rng_state()), "the caller's random numbers were touched"
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = fresh_model(dataclasses.replace(tiny_config, seed=1)).state_dict()
    name = "aggregator.frame_blocks.0.attn.qkv.weight"
    assert not torch.equal(first[name], other[name])


def test_vectors_and_tokens_are_not_decayed(tiny_config: TrainingConfig) -> None:
    model = fresh_model(tiny_config)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, kept = (
        [names[id(p)] for p in g["params"]] for g in build_optimizers(model, tiny_config.optimizer)[0].param_groups
    )
    assert "aggregator.camera_token" in kept
    assert "aggregator.patch_embed.pos_embed" in kept
    assert "camera_head.empty_pose_tokens" in kept
    assert "aggregator.frame_blocks.0.attn.qkv.weight" in decayed
    assert not any(name.endswith("bias") for name in decayed)
    assert len(decayed) + len(kept) == sum(p.requires_grad for p in model.parameters())
