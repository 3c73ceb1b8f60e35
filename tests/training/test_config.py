"""Configuration files: what is unknown or impossible is named."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vggt_int8.model import VGGT
from vggt_int8.training.config import OptimizerConfig, TrainingConfig, config_from_table, load_config
from vggt_int8.training.start import build_optimizers, fresh_model, rate_factor

ASSETS = Path(__file__).parents[2] / "vggt_int8/assets/mini"
MINI = ASSETS / "training.toml"


def test_the_embedded_model_fits_its_limits() -> None:
    config = load_config(MINI)
    with torch.device("meta"):
        model = VGGT(config.vggt())
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
        ({"compile": "render"}, "compile must be .*, got 'render'"),
        ({"validation": {"views": [1]}}, "validation.views must be at least 2, got 1"),
        ({"optimizer": {"total_steps": "4"}}, "total_steps must be int, got '4'"),
        ({"optimizer": {"decay_share": 2}}, "decay_share must be at least 0 and at most 1, got 2"),
        ({"data": {"size": [32]}}, r"size must be .*, got \(32,\)"),
        ({"data": {"size": [112, 60]}}, r"data.size \[112, 60\] must be multiples of the patch size 14"),
        ({"model": {"mlp_ratoi": 2.0}}, "unknown keys mlp_ratoi"),
    ],
)
def test_values_out_of_range_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_table({"model": {}, **change})


def test_a_configuration_survives_json(tiny_config: TrainingConfig) -> None:
    table = json.loads(json.dumps(dataclasses.asdict(tiny_config)))
    assert config_from_table(table) == tiny_config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = 1", r"there is no \[model\] table"),
        ("sede = 1\n[model]", "unknown keys sede"),
        ("[model]\n[data]\nframe = 3", r"\[data\] has unknown keys frame"),
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
        load_config(path)
    assert "run.toml" in str(caught.value)


def test_schedule_warms_up_stays_and_ends_at_zero() -> None:
    config = OptimizerConfig(warmup_steps=10, total_steps=100, decay_share=0.3)
    factors = [rate_factor(step, config) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[10:71] == [1.0] * 61
    assert all(a > b for a, b in itertools.pairwise(factors[70:]))
    assert factors[100] == 0


def test_a_restart_begins_the_schedule_anew() -> None:
    config = OptimizerConfig(warmup_steps=10, restarts=(100,), total_steps=300, decay_share=0.3)
    alone = OptimizerConfig(warmup_steps=10, total_steps=100, decay_share=0.3)
    assert [rate_factor(step, config) for step in range(100)] == [rate_factor(step, alone) for step in range(100)]
    twice = OptimizerConfig(warmup_steps=10, total_steps=200, decay_share=0.3)
    assert [rate_factor(100 + step, config) for step in range(201)] == [rate_factor(step, twice) for step in range(201)]
    for restarts in ((0,), (300,), (200, 100)):
        with pytest.raises(ValueError, match=r"restarts .* must rise"):
            OptimizerConfig(restarts=restarts, total_steps=300)


def test_a_restart_may_have_rates_of_its_own() -> None:
    schedule = {"warmup_steps": 10, "restarts": (100, 200), "total_steps": 300, "decay_share": 0.3}
    plain, config = OptimizerConfig(**schedule), OptimizerConfig(**schedule, restart_rates=(1.0, 0.2))
    assert [rate_factor(step, config) for step in range(200)] == [rate_factor(step, plain) for step in range(200)]
    for step in range(200, 301):
        assert rate_factor(step, config) == pytest.approx(0.2 * rate_factor(step, plain))
    with pytest.raises(ValueError, match="restart_rates has 1 rates for 2 restarts"):
        OptimizerConfig(**schedule, restart_rates=(0.5,))
    with pytest.raises(ValueError, match=r"restart_rates \[1.0, 0.0\] must be above 0"):
        OptimizerConfig(**schedule, restart_rates=(1.0, 0.0))


def test_the_second_part_of_the_embedded_models_training_goes_on_where_the_first_ends() -> None:
    first, second = load_config(MINI), load_config(ASSETS / "training_long.toml")
    assert (first.model, first.seed, first.data) == (second.model, second.seed, second.data)
    assert second.optimizer.restarts[0] == first.optimizer.total_steps


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
