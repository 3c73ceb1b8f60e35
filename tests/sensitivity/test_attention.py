"""Choosing what layers look at: within the budget by prediction, least errors first; models are left as they were."""

import math

import pytest

from vggt_int8 import VGGTConfig, VGGTInt8
from vggt_int8.sensitivity.attention import EVERY, changes_of, choose

FRAMES = {(f"layer {layer}", "frames"): {"depth": error} for layer, error in enumerate((4.0, 1.0, 9.0, 2.0))}


def test_layers_are_taken_by_their_errors_until_the_budget_is_spent() -> None:
    for budget, layers in ((0.5, ""), (1.0, "1"), (2.3, "13"), (4.7, "013"), (99, "0123")):
        chosen, predicted = choose(FRAMES, 4, range(4), None, budget)
        assert [str(i) for i, word in enumerate(chosen.layers) if word == "frames"] == list(layers)
        assert set(chosen.layers) <= {"exact", "frames"}
        assert chosen.keyframes is None
        spent = math.hypot(*(FRAMES[f"layer {layer}", "frames"]["depth"] for layer in layers))
        assert predicted.get("depth", 0.0) == pytest.approx(spent)
        assert spent <= budget


def test_key_frames_are_the_rest_and_part_of_the_prediction() -> None:
    errors = FRAMES | {(EVERY, "keyframes"): {"depth": 3.0}}
    chosen, predicted = choose(errors, 4, range(4), 8, 3.2)
    assert chosen.layers == ("keyframes", "frames", "keyframes", "keyframes")
    assert chosen.keyframes == 8
    assert predicted["depth"] == pytest.approx(math.hypot(3, 1))
    chosen, _ = choose(errors, 4, range(4), 8, 99)
    assert (chosen.layers, chosen.keyframes) == (("frames",) * 4, None), "no layer is left that would look at them"
    with pytest.raises(ValueError, match=r"--error 2\.9 cannot be met with 8 key frames .* whose error is 3:"):
        choose(errors, 4, range(4), 8, 2.9)


def test_a_change_is_undone(tiny_sizes: dict) -> None:
    model = VGGTInt8(VGGTConfig(**tiny_sizes))
    before, depth = model.default_attention, model.config.depth
    changes = changes_of(depth, model.global_layers, 2)
    assert len({(change.unit, change.choice) for change in changes}) == len(changes) == 2 * depth + 1
    for change in (changes[0], changes[-1]):
        with pytest.raises(RuntimeError, match="in the middle"), change.made(model):  # noqa: PT012
            assert model.default_attention.layers == change.layers
            assert model.default_attention != before
            raise RuntimeError("in the middle")
        assert model.default_attention == before


def test_layers_without_global_attention_are_not_ranked() -> None:
    """The register layers of VGGT-Omega: leaving them inside frames would cost nothing, and win nothing."""
    units = [change.unit for change in changes_of(4, (0, 2, 3), None)]
    assert units == ["layer 0", "layer 2", "layer 3"]
    chosen, _ = choose(FRAMES, 4, (0, 2, 3), None, 99)
    assert chosen.layers == ("frames", "exact", "frames", "frames")
