"""Steps of quantization-aware training: what is trained, what is kept, what is told."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.qat.conftest import SMALL, static_layers, weights
from tests.training.runs import entries
from vggt_int8.model import VGGT, VGGTConfig
from vggt_int8.quant.fake import fake_layers, fake_quantize
from vggt_int8.quant.plan import make_plan
from vggt_int8.recipe import load_recipe
from vggt_int8.training import qat
from vggt_int8.training.distiller import Distiller, changes_since, choose_parameters
from vggt_int8.training.loop import RunLimits
from vggt_int8.training.qat_config import QatConfig


def build(model: Path, out: Path, config: QatConfig, recipe: str = "int8_dynamic") -> Distiller:
    teacher = qat.plain_network(str(model))
    student = qat.copy_of(teacher)
    fake_quantize(student, make_plan(student, load_recipe(recipe)))
    return Distiller(config, out, student, teacher, qat.Rendered(), {"recipe": "int8_dynamic"}, quiet=True)


@pytest.mark.slow
def test_the_best_weights_are_kept(
    model: Path, settings: QatConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals = iter([3.0, 1.0, 2.0])
    distiller = build(model, tmp_path / "run", settings)
    monkeypatch.setattr(distiller, "score", lambda scenes: {"2 views": {"total": next(totals)}})
    distiller.train(RunLimits())
    assert distiller.best == {"step": 2, "loss": 1.0, "start_loss": 3.0}
    last = {name: value.detach().clone() for name, value in distiller.network.named_parameters()}
    assert distiller.restore_best()["step"] == 2
    assert any(not torch.equal(last[name], value) for name, value in distiller.network.named_parameters())
    again = build(model, tmp_path / "run", settings)
    assert again.best == distiller.best


def test_a_run_goes_on_only_where_losses_can_be_compared(settings: QatConfig, tmp_path: Path) -> None:
    origin = {"recipe": "int8_dynamic", "data": {"images": 6}}
    facts = json.loads(json.dumps({"origin": origin, "config": dataclasses.asdict(settings)}))

    def changed(**sections: dict[str, Any]) -> QatConfig:
        found = {name: dataclasses.replace(getattr(settings, name), **values) for name, values in sections.items()}
        return dataclasses.replace(settings, **found)

    longer = changed(optimizer={"total_steps": 9}, validation={"every_steps": 3})
    assert changes_since(facts, tmp_path, origin, settings) == []
    assert changes_since(facts, tmp_path, origin, longer) == [
        "optimizer.total_steps was 4, is 9 from here on",
        "validation.every_steps was 2, is 3 from here on",
    ]
    for section, key, value in [("validation", "scenes", 3), ("validation", "views", (3,)), ("loss", "pose", 2.0)]:
        with pytest.raises(ValueError, match=rf"{section}\.{key} was .* could not be compared"):
            changes_since(facts, tmp_path, origin, changed(**{section: {key: value}}))
    with pytest.raises(ValueError, match="is of another data"):
        changes_since(facts, tmp_path, {**origin, "data": {"images": 7}}, settings)


@pytest.mark.slow
def test_outlier_columns_are_not_recorded(model: Path, settings: QatConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot record layers with an outlier_threshold"):
        build(model, tmp_path, dataclasses.replace(settings, cuda_graph=True), "llm_int8")
    losses, _ = (distiller := build(model, tmp_path, settings, "llm_int8")).train_step(next(distiller.items(1)))
    assert losses["total"].isfinite()


def test_where_the_truth_is_known_it_is_scored_too(model: Path, settings: QatConfig, tmp_path: Path) -> None:
    scores = build(model, tmp_path, settings).score(None)["2 views"]
    assert {"total", "features", "pose", "auc_5", "abs_rel"} <= scores.keys()


@pytest.mark.slow
def test_only_what_is_asked_for_is_trained(model: Path, settings: QatConfig, tmp_path: Path) -> None:
    settings = dataclasses.replace(settings, trained="norms")
    distiller = build(model, tmp_path, settings)
    before = {name: value.detach().clone() for name, value in distiller.network.named_parameters()}
    distiller.train(RunLimits(max_steps=1, validate_at_end=False))
    changed = {name for name, value in distiller.network.named_parameters() if not torch.equal(before[name], value)}
    assert any("norm1.weight" in name for name in changed)
    assert any(name.endswith("ls1.gamma") for name in changed)
    assert all(name.endswith((".bias", ".gamma")) or "norm" in name for name in changed)


def test_the_track_head_stays_as_it_is() -> None:
    tracker = {"enable_track": True, "track_features": 32, "track_hidden_size": 64, "track_iterations": 2}
    network = VGGT(VGGTConfig(**{**SMALL, **tracker, "track_corr_levels": 2, "track_corr_radius": 2}))
    choose_parameters(network, QatConfig())
    asked = {name for name, value in network.named_parameters() if value.requires_grad}
    assert asked
    assert not any(name.startswith("track_head") or name.endswith("mask_token") for name in asked)


def test_static_scales_learn_unless_they_are_fixed(model: Path) -> None:
    recipe = load_recipe("int8_static_rotated")
    for scales in ("learned", "fixed"):
        network = qat.plain_network(str(model))
        plan = make_plan(network, recipe)
        fake_quantize(network, plan, {name: torch.ones(p.scheme.input_scales) for name, p in static_layers(plan)})
        choose_parameters(network, QatConfig(scales=scales))
        static = [fake.log_input_scale for _, fake in fake_layers(network) if fake.log_input_scale is not None]
        assert {scale.requires_grad for scale in static} == {scales == "learned"}


@pytest.mark.slow
def test_checkpointed_blocks_learn_the_same(model: Path, settings: QatConfig, tmp_path: Path) -> None:
    runs = []
    for checkpointing in (False, True):
        config = dataclasses.replace(settings, gradient_checkpointing=checkpointing)
        distiller = build(model, tmp_path / str(checkpointing), config)
        assert distiller.network.aggregator.frame_blocks[0].gradient_checkpointing is checkpointing
        distiller.train(RunLimits(max_steps=2, validate_at_end=False))
        runs.append(dict(distiller.network.named_parameters()))
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())


@pytest.mark.slow
def test_a_run_that_breaks_says_so_and_leaves_what_was_good(model: Path, settings: QatConfig, tmp_path: Path) -> None:
    optimizer = dataclasses.replace(settings.optimizer, learning_rate=1e30)
    distiller = build(model, tmp_path, dataclasses.replace(settings, optimizer=optimizer))
    with pytest.raises(FloatingPointError, match="The last checkpoint is intact; lower the learning rate"):
        distiller.train(RunLimits())
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "best").values())


@pytest.mark.gpu
def test_recorded_steps_learn_as_others_do(model: Path, settings: QatConfig, tmp_path: Path) -> None:
    runs = []
    for graph in (False, True):
        config = dataclasses.replace(settings, cuda_graph=graph)
        build(model, tmp_path / str(graph), config).train(RunLimits(validate_at_end=False))
        runs.append([entry["total"] for entry in entries(tmp_path / str(graph), "train")])
    assert len(runs[0]) == 4
    assert runs[0] == pytest.approx(runs[1], rel=1e-3)
