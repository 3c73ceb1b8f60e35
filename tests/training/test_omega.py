"""A VGGT-Omega learns by the same loop and losses, goes on from its checkpoint, and is exported as one."""

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.training.runs import ONLY, entries
from vggt_int8 import VGGTOmega, VGGTOmegaConfig
from vggt_int8.embedded import EMBEDDED_MODELS
from vggt_int8.model.omega.constants import ConstantBuffer
from vggt_int8.training.config import TrainingConfig, config_from_table, load_run
from vggt_int8.training.networks import first_difference
from vggt_int8.training.run import export, trained_model
from vggt_int8.training.trainer import Trainer

MINI = Path(__file__).parents[2] / "vggt_int8/assets/mini_omega/training.toml"


@pytest.mark.slow
def test_a_run_learns_goes_on_and_is_exported(omega_training: TrainingConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    Trainer(omega_training, out).train(dataclasses.replace(ONLY, max_steps=6))
    resumed = Trainer(omega_training, out)
    assert resumed.step == 6
    assert isinstance(resumed.network, VGGTOmega)
    assert resumed.train(ONLY) == "all steps are done"
    log = entries(out, "train")
    assert {"camera", "depth", "point"} <= log[0].keys()
    assert "track" not in log[0]
    assert log[-1]["total"] < log[0]["total"]
    export(out, tmp_path / "model")
    model = trained_model(tmp_path / "model", omega_training)
    for name, parameter in resumed.network.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter.detach().half().float()), name
    assert all(m.holds(m.get_buffer(m.buffer)) for m in model.modules() if isinstance(m, ConstantBuffer))


def test_the_small_model_fits_its_limit() -> None:
    config = load_run(MINI)[0].network()
    with torch.device("meta"):
        model = VGGTOmega(config)
    header = 2**16
    assert 2 * sum(tensor.numel() for tensor in model.state_dict().values()) + header <= 8e6


def test_the_embedded_model_is_what_its_run_makes() -> None:
    config = VGGTOmegaConfig.from_pretrained("embedded-omega")
    assert first_difference(config, load_run(MINI)[0].network()) is None
    assert (EMBEDDED_MODELS["embedded-omega"] / "model.safetensors").stat().st_size <= 8e6


def test_another_kind_of_network_is_named(omega_training: TrainingConfig) -> None:
    with pytest.raises(ValueError, match="model_type 'dust3r'; it can be vggt, vggt_omega"):
        config_from_table({"model": {"model_type": "dust3r"}})
    with pytest.raises(ValueError, match="unknown keys 'rope_freq'"):
        config_from_table({"model": {**omega_training.model, "rope_freq": 100.0}})
    with pytest.raises(ValueError, match=r"data\.tracks is 4, but the model has no track head"):
        dataclasses.replace(omega_training, data=dataclasses.replace(omega_training.data, tracks=4))


def test_a_checkpoint_of_another_kind_is_refused(
    omega_training: TrainingConfig, tiny_config: TrainingConfig, tmp_path: Path
) -> None:
    Trainer(omega_training, tmp_path).save()
    with pytest.raises(ValueError, match="is of a network with model_type vggt_omega, not vggt"):
        Trainer(tiny_config, tmp_path)
