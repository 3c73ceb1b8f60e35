"""Distillation: a network learns to match a trained network's tokens, in addition to the scenes' ground truth.

The ground truth only constrains a frame's hundreds of tokens through the heads, and the camera error is mostly noise
from batch to batch. A teacher gives a target for every token. Source: Romero et al., "FitNets: Hints for Thin Deep
Nets" (2015).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vggt_int8.model.configs import AnyConfig
from vggt_int8.model.families import AnyNetwork
from vggt_int8.training.config import TrainingConfig
from vggt_int8.training.inherit import chosen
from vggt_int8.training.networks import trained_network
from vggt_int8.training.start import compile_blocks

SMALLEST = 1e-6  # of what errors are divided by


@dataclass
class Tokens:
    """Aggregator outputs: `patches` of the encoder [F, N, C], and layers, each [B, S, P, 2C]."""

    patches: Tensor = field(init=False)
    layers: dict[int, Tensor] = field(default_factory=dict)


@contextmanager
def overheard(aggregator: nn.Module) -> Iterator[Tokens]:
    """Record the tokens of the one aggregator call within the block."""
    heard = Tokens()

    def keep_patches(module: nn.Module, args: tuple[object, ...], patches: Tensor) -> None:
        heard.patches = patches

    def keep_layers(module: nn.Module, args: tuple[object, ...], layers: dict[int, Tensor]) -> None:
        heard.layers.update(layers)

    encoder = aggregator.get_submodule("patch_embed")
    handles = [encoder.register_forward_hook(keep_patches), aggregator.register_forward_hook(keep_layers)]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


class Teacher:
    """A frozen network, and which of its layers is the target for each of the student's layers."""

    def __init__(self, network: AnyNetwork, layers: Mapping[int, int]) -> None:
        """layers: the student's -> the teacher's."""
        self.aggregator = network.aggregator.eval().requires_grad_(False)
        self.layers = dict(layers)

    def loss(self, images: Tensor, heard: Tokens) -> Tensor:
        """Distance of the student's tokens for images [B, S, 3, H, W] from the teacher's: a scalar.

        Squared error divided by squared norm for each token; the mean over tokens, then over the encoder's patches and
        the layers that the student's heads read and the teacher has.
        """
        followed = {layer: self.layers[layer] for layer in heard.layers if layer in self.layers}
        with torch.no_grad(), overheard(self.aggregator) as wanted:
            self.aggregator(images, set(followed.values()))
        errors = [token_error(heard.patches, wanted.patches)]
        errors += [token_error(heard.layers[ours], wanted.layers[theirs]) for ours, theirs in followed.items()]
        return torch.stack(errors).mean()


def token_error(ours: Tensor, theirs: Tensor) -> Tensor:
    """[..., C] -> the mean over tokens of squared error divided by squared norm, in fp32."""
    wanted = theirs.float()
    error = (ours.float() - wanted).square().sum(-1)
    return (error / wanted.square().sum(-1).clamp_min(SMALLEST)).mean()


def find_teacher(config: TrainingConfig, device: torch.device) -> Teacher | None:
    """The teacher of one part of a run, on a device, compiled like the student; None without a teacher.

    Raises ValueError if the number or width of its tokens differs from the student's.
    """
    if not config.loss.teacher:
        return None
    network = trained_network(config.teacher.model)
    _check_tokens(config.network(), network.config)
    if "blocks" in config.compile:
        compile_blocks(network, config)
    layers = chosen(config.teacher.layers, config.network().depth, network.config.depth, "teacher.layers")
    return Teacher(network.to(device), dict(enumerate(layers)))


def _check_tokens(ours: AnyConfig, theirs: AnyConfig) -> None:
    for key in ("patch_size", "embed_dim", "num_register_tokens"):
        student, teacher = getattr(ours, key), getattr(theirs, key)
        if student != teacher:
            raise ValueError(
                f"the teacher's tokens are others than those of [model]: its {key} is {teacher}, not {student}"
            )
