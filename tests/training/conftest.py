"""A configuration small enough to train on a CPU in seconds."""

import dataclasses

import pytest

from vggt_int8.training.config import TrainingConfig
from vggt_int8.training.sections import DataConfig, OptimizerConfig, ValidationConfig

TINY_MODEL = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 64,
    "encoder_depth": 1,
    "encoder_num_heads": 1,
    "depth": 2,
    "num_heads": 1,
    "mlp_ratio": 2.0,
    "camera_depth": 1,
    "camera_num_heads": 2,
    "dpt_features": 32,
    "dpt_out_channels": [32, 32, 32, 32],
    "dpt_layers": [0, 0, 1, 1],
    "enable_track": False,
}


@pytest.fixture
def tiny_config() -> TrainingConfig:
    return TrainingConfig(
        model=TINY_MODEL,
        data=DataConfig(size=(32, 32), views=(2, 4), frames_per_step=8, supersample=1, workers=0),
        optimizer=OptimizerConfig(warmup_steps=4, total_steps=12),
        validation=ValidationConfig(scenes=2, views=(2,), every_steps=1000, frames_per_batch=4),
        mixed_precision="no",
        log_steps=2,
    )


@pytest.fixture
def tracking_config(tiny_config: TrainingConfig) -> TrainingConfig:
    tracker = {"enable_track": True, "track_features": 32, "track_hidden_size": 64, "track_iterations": 2}
    model = {**TINY_MODEL, **tracker, "track_corr_levels": 2, "track_corr_radius": 2}
    return dataclasses.replace(tiny_config, model=model, data=dataclasses.replace(tiny_config.data, tracks=6))


@pytest.fixture
def omega_training(tiny_config: TrainingConfig) -> TrainingConfig:
    """The same run of a VGGT-Omega."""
    model = {
        **{name: TINY_MODEL[name] for name in ("img_size", "patch_size", "embed_dim", "encoder_depth", "depth")},
        **{name: TINY_MODEL[name] for name in ("num_heads", "encoder_num_heads", "mlp_ratio", "camera_num_heads")},
        **{name: TINY_MODEL[name] for name in ("camera_depth", "dpt_features", "dpt_out_channels", "dpt_layers")},
        "model_type": "vggt_omega",
        "num_register_tokens": 3,
        "register_layers": [0],
    }
    return dataclasses.replace(tiny_config, model=model)
