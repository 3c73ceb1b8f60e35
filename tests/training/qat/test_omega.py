"""VGGT-Omega trains under INT8 rounding as VGGT does: what its layers have of their own is kept."""

import json
from pathlib import Path

import pytest
import torch

from tests.training.qat.conftest import weights
from vggt_int8 import VGGTOmega, VGGTOmegaConfig, VGGTOmegaInt8, quantize
from vggt_int8.model.omega.constants import KeylessBiasLinear
from vggt_int8.quant.fake import FakeInt8Linear, fake_quantize, restore
from vggt_int8.quant.plan import make_plan
from vggt_int8.quant.storage import encode
from vggt_int8.recipe import load_recipe
from vggt_int8.training import qat
from vggt_int8.training.config import TrainingConfig
from vggt_int8.training.distiller import choose_parameters
from vggt_int8.training.qat_config import QatConfig
from vggt_int8.training.start import fresh_model

QKV = "aggregator.frame_blocks.0.attn.qkv"


@pytest.fixture
def floats(omega_training: TrainingConfig) -> VGGTOmega:
    model = fresh_model(omega_training)
    assert isinstance(model, VGGTOmega)
    return model.eval()


def test_a_fake_layer_computes_what_the_int8_layer_will(floats: VGGTOmega) -> None:
    """To the last bit, for queries, keys and values, whose bias has no part for keys; nor has its gradient."""
    layer = floats.get_submodule(QKV)
    layer.bias.data.normal_().chunk(3)[1].fill_(torch.nan)  # nothing reads it, nor the buffer of constants
    int8 = quantize(qat.copy_of(floats), "int8_dynamic", "reference").get_submodule(QKV)
    layer.bias_mask.fill_(7)
    before = dict(floats.named_parameters())
    fake_quantize(floats, make_plan(floats, load_recipe("int8_dynamic")))
    fake = floats.get_submodule(QKV)
    assert isinstance(fake, FakeInt8Linear)
    x = torch.randn(2, 5, fake.in_features, generator=torch.Generator().manual_seed(0))
    y = fake(x)
    assert torch.equal(y, int8(x))
    y.square().sum().backward()
    query, key, value = fake.bias.grad.chunk(3)
    assert min(query.count_nonzero(), value.count_nonzero()) > 0
    assert key.count_nonzero() == 0
    restore(floats)
    layer = floats.get_submodule(QKV)
    assert type(layer) is KeylessBiasLinear
    assert layer.holds(layer.bias_mask)
    assert all(parameter is before[name] for name, parameter in floats.named_parameters())


def test_the_text_head_stays_as_it_is() -> None:
    sizes = {"embed_dim": 32, "encoder_depth": 1, "depth": 1, "dpt_layers": [0] * 4, "register_layers": []}
    network = VGGTOmega(VGGTOmegaConfig(**sizes, encoder_num_heads=1, num_heads=1, dpt_features=8, enable_text=True))
    choose_parameters(network, QatConfig())
    asked = {name for name, value in network.named_parameters() if value.requires_grad}
    assert asked
    assert not any(name.startswith("text_alignment_head") for name in asked)


@pytest.mark.slow
def test_scenes_become_an_int8_checkpoint(floats: VGGTOmega, config: Path, tmp_path: Path) -> None:
    floats.save_pretrained(tmp_path / "floats")
    end = qat.train_qat(str(tmp_path / "floats"), ["synthetic"], tmp_path / "out", "int8_dynamic", config=config)
    assert (end.step, end.reason) == (4, "all steps are done")
    log = [json.loads(line) for line in (tmp_path / "out/run/log.jsonl").read_text().splitlines()]
    assert {"pose", "depth", "points", "features", "confidence"} <= log[-1]["2 views"].keys()
    loaded = VGGTOmegaInt8.from_pretrained(tmp_path / "out")
    assert loaded.config.quantization_config.training["steps"] == 4
    codes, _ = encode(weights(tmp_path / "out/run/best")[f"weight.{QKV}.weight"], 0, 0)
    assert torch.equal(loaded.get_submodule(QKV).weight[0], codes)
    assert 'VGGTOmegaInt8.from_pretrained("' in (tmp_path / "out/README.md").read_text()
