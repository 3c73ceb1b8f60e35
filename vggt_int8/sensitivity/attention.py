"""Measure the error of restricted attention in each global block, and choose an attention scope per layer for a budget.

Which layers can be restricted to their own frame depends on the weights: according to papers it costs almost nothing in
the first nine layers of the public VGGT-1B, but it ruins the first layer of the embedded model. Every layer is
therefore measured against exact attention in all layers.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from vggt_int8.global_attention import GlobalAttention, Looks
from vggt_int8.model.network import Network
from vggt_int8.sensitivity.measures import Errors, largest, over_scenes, together
from vggt_int8.sensitivity.record import Record

CHOSEN, EVERY = "chosen", "every layer"


@dataclass(frozen=True)
class AttentionChange:
    """`layers`: the attention scope of each layer while the change is applied. unit, choice: see `measure.Change`."""

    unit: str
    choice: str
    layers: tuple[Looks, ...]
    keyframes: int | None = None

    @contextmanager
    def made(self, model: nn.Module) -> Iterator[None]:
        assert isinstance(model, Network)
        before = model.default_attention
        model.default_attention = GlobalAttention.of(len(self.layers), self.layers, self.keyframes)
        try:
            yield
        finally:
            model.default_attention = before


def changes_of(depth: int, global_layers: Sequence[int], keyframes: int | None) -> list[AttentionChange]:
    """Restrict one of `depth` layers at a time to its own frame while all others are exact. With `keyframes`, also
    restrict each layer, and all layers, to key frames. global_layers: the layers for which the scope matters.
    """
    words: tuple[Looks, ...] = ("frames",) if keyframes is None else ("frames", "keyframes")
    found = []
    for word in words:
        its = keyframes if word == "keyframes" else None
        for layer in global_layers:
            layers: list[Looks] = ["exact"] * depth
            layers[layer] = word
            found.append(AttentionChange(f"layer {layer}", word, tuple(layers), its))
    if keyframes is not None:
        found.append(AttentionChange(EVERY, "keyframes", tuple(words[1:] * depth), keyframes))
    return found


def errors_of(changes: Sequence[AttentionChange], record: Record, scenes: int) -> dict[tuple[str, str], Errors]:
    """(unit, choice) -> errors over all scenes."""
    return {(c.unit, c.choice): over_scenes(record.errors(c.unit, c.choice, scenes)) for c in changes}


def choose(
    errors: Mapping[tuple[str, str], Errors],
    depth: int,
    global_layers: Sequence[int],
    keyframes: int | None,
    budget: float,
) -> tuple[AttentionChange, Errors]:
    """Restrict as many layers to their own frame as the error budget allows, those with the smallest errors first. The
    other layers are exact, or use key frames where that was measured and fits the budget. Returns the choice and its
    predicted errors.

    Raises ValueError if key frames alone exceed the budget.
    """
    rest: Looks = "exact" if keyframes is None else "keyframes"
    parts = [errors[EVERY, "keyframes"]] if keyframes is not None else []
    if largest(together(parts)) > budget:
        raise ValueError(
            f"--error {budget:g} cannot be met with {keyframes} key frames in every layer, whose error is "
            f"{largest(together(parts)):.3g}: give more --keyframes, or leave them out"
        )
    layers: list[Looks] = [rest] * depth
    for layer in sorted(global_layers, key=lambda layer: largest(errors[f"layer {layer}", "frames"])):
        more = [*parts, errors[f"layer {layer}", "frames"]]
        if largest(together(more)) > budget:
            break
        layers[layer], parts = "frames", more
    used = keyframes if "keyframes" in layers else None
    return AttentionChange(CHOSEN, " ".join(layers), tuple(layers), used), together(parts)
