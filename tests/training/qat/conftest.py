"""A tiny network, images and settings for quantization-aware training."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.training.conftest import TINY_MODEL
from vggt_int8.model import VGGTConfig
from vggt_int8.quant.plan import LayerPlan
from vggt_int8.training.config import TrainingConfig
from vggt_int8.training.qat_config import QatConfig, read_table, settings_for
from vggt_int8.training.sections import DataConfig
from vggt_int8.training.start import fresh_model

SMALL = {**TINY_MODEL, "img_size": 16, "camera_iterations": 2, "dpt_features": 8, "dpt_out_channels": [8, 8, 8, 8]}
CONFIG = """
log_steps = 1
start = "nearest"
[data]
views = [2]
frames_per_step = 4
supersample = 1
workers = 0
[validation]
scenes = 2
views = [2]
every_steps = 2
[optimizer]
total_steps = 4
warmup_steps = 1
learning_rate = 1e-5
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network in floats, whose heads see more than noise."""
    folder = tmp_path_factory.mktemp("floats") / "model"
    config = TrainingConfig(model=SMALL, data=DataConfig(size=(16, 16)))
    fresh_model(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of three images."""
    folder = tmp_path_factory.mktemp("photos")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16, 3), dtype=np.uint8)
    for scene, images in zip("ab", pixels, strict=True):
        (folder / scene).mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image).save(folder / scene / f"{number}.png")
    return folder


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "qat.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def settings(config: Path) -> QatConfig:
    return load_qat(config, VGGTConfig(**SMALL))


def load_qat(path: Path, model: VGGTConfig) -> QatConfig:
    return settings_for(read_table(path), model, path)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def static_layers(plan: dict[str, LayerPlan]) -> list[tuple[str, LayerPlan]]:
    return [(name, layer) for name, layer in plan.items() if getattr(layer.scheme, "input_scales", 0)]
