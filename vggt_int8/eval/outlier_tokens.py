"""Gives a network outlier tokens and outlier inputs of fc2, as VGGT-1B has them, and keeps what it computes.

In VGGT-1B the input of fc2 reaches 142 in one block of the encoder and 26 in another, and the first tokens of every
frame, camera and registers, carry the outliers of the aggregator. `with_outliers` can make neither: GELU(c x) is not
c GELU(x). But GELU(x) is x once x is above some six, and 0 below minus six, so two hidden units can say the same:

    first:  GELU(2 u) = 2 u on special tokens, 0 on patches        its column of fc2:      v
    second: GELU(u)   =   u on special tokens, 0 on patches        its column of fc2:  - 2 v

u = w . x - t is a direction of fc1's input that tells special tokens from patches (a linear discriminant of Fisher's,
found on images), scaled so that 2 u reaches what is published. The two cancel, in fp16 too since all factors are powers
of two, and between minus six and six they leave at most 0.17 (1 + 2) |v|, whatever the image. What cancels for numbers
does not cancel for codes: one large value makes the token's step large, so that its other 382 hidden units, and the
half of 127 that the second unit is, are rounded away; and a scale for all tokens takes the patches with it. Nothing
that folds scales into neighbours undoes this, since between fc1 and fc2 is a GELU.

The two units take the places of the block's weakest, of which the others take over what they can tell. This alone
changes the function, by about as much as one rounding of the weights: the embedded model loses 0.3 points of AUC@5 in
fp32 (56.9 to 56.5), and its AbsRel is 0.0249 in the place of 0.0239.

Inputs of qkv and fc1 get the outliers of special tokens by scaling LayerNorm channels in which these tokens stand out,
exactly and by powers of two, as `with_outliers` does. Those folding can undo.

Harder than the real one in this: a group of a rotation is smaller in a small model, so an outlier is spread over fewer
numbers; every layer of the aggregator has outliers. Easier in this: they are few, and on special tokens alone. Neither
is VGGT-1B.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggt_int8.eval.outliers import transformer_blocks

Model = TypeVar("Model", bound=nn.Module)

FULL_DEPTH = 24  # blocks of VGGT-1B's encoder, and of its aggregator: the indices below are of these
# Largest input of fc2 that is published for a block, and for all others of that part where there is one.
ENCODER_FC2 = {2: 142.0, 10: 26.0}
AGGREGATOR_FC2, AGGREGATOR_FC2_AT = 9.0, {10: 14.0}
AGGREGATOR_QKV, AGGREGATOR_FC1 = 16.0, 18.0  # of 11 ... 19 and 14 ... 20
SHARE = 0.015  # of the channels, as of `with_outliers`
RIDGE = 0.1  # of a unit's variance: 120 special tokens, all much alike, would be told by 382 others exactly


class _Inputs(NamedTuple):
    """What a linear read: rows of special tokens and of patches, [rows, K] fp32."""

    special: Tensor
    patches: Tensor


def with_outlier_tokens(model: Model, seed: int, images: Iterable[Tensor]) -> Model:
    """A copy of a VGGT (in fp32) with outlier tokens and outlier inputs of fc2; see the module's text.

    seed: draws the columns of fc2. images: batches [B, S, 3, H, W] in [0, 1] on the model's device, on which special
    tokens are told from patches; some sixteen frames do. The same seed and images give the same model.

    Raises ValueError for a model without VGGT's blocks, weights that are not fp32, no image, and a block in which no
    direction tells special tokens from patches.
    """
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    peaks = _peaks([name for name, _ in transformer_blocks(model)])
    if not peaks:
        raise ValueError(f"{type(model).__name__} has no encoder and aggregator blocks of a VGGT")
    blocks: dict[str, Any] = {name: model.get_submodule(name) for name in peaks}
    if wrong := next((name for name, block in blocks.items() if block.mlp.fc1.weight.dtype != torch.float32), None):
        raise ValueError(f"{wrong} is {blocks[wrong].mlp.fc1.weight.dtype}; outliers are made in fp32")
    readers = [f"{name}.{reader}" for name in peaks for reader in ("attn.qkv", "mlp.fc1")]
    inputs = linear_inputs(model, readers, images)
    with torch.no_grad():
        for name, peak in peaks.items():
            block = blocks[name]
            _raise_hidden(name, block, inputs[f"{name}.mlp.fc1"], peak, generator)
            if not name.startswith(_ENCODER):
                _raise_channels(block.norm1, block.attn.qkv, inputs[f"{name}.attn.qkv"], AGGREGATOR_QKV)
                _raise_channels(block.norm2, block.mlp.fc1, inputs[f"{name}.mlp.fc1"], AGGREGATOR_FC1)
    return model


@torch.no_grad()
def linear_inputs(model: Any, names: Sequence[str], images: Iterable[Tensor]) -> dict[str, _Inputs]:
    """What linears of encoder and aggregator read for `images`, special tokens apart from patches.

    Raises ValueError where there are no images.
    """
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    tokens = 0

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[name].append(args[0].detach().float().reshape(-1, tokens, args[0].shape[-1]))

        return model.get_submodule(name).register_forward_pre_hook(hook)

    special = model.aggregator.num_special
    hooks = [watch(name) for name in names]
    try:
        for batch in images:
            tokens = special + (batch.shape[-2] // model.aggregator.patch_size) * (
                batch.shape[-1] // model.aggregator.patch_size
            )
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not tokens:
        raise ValueError("there are no images: special tokens are told from patches on some")
    frames = {name: torch.cat(parts) for name, parts in seen.items()}
    return {name: _Inputs(x[:, :special].flatten(0, 1), x[:, special:].flatten(0, 1)) for name, x in frames.items()}


_ENCODER = "aggregator.patch_embed.blocks."
_AGGREGATOR = ("aggregator.frame_blocks.", "aggregator.global_blocks.")


def _peaks(names: list[str]) -> dict[str, float]:
    """Name of a block -> what the largest input of its fc2 is to be: published blocks at the same share of depth."""
    peaks = {}
    for part, others, at in (
        (_ENCODER, None, ENCODER_FC2),
        *((part, AGGREGATOR_FC2, AGGREGATOR_FC2_AT) for part in _AGGREGATOR),
    ):
        blocks = [name for name in names if name.startswith(part)]
        special: dict[int, float] = {}
        for published, peak in at.items():
            index = published * len(blocks) // FULL_DEPTH
            special[index] = max(peak, special.get(index, 0.0))
        for index, name in enumerate(blocks):
            if (wanted := special.get(index, others)) is not None:
                peaks[name] = wanted
    return peaks


def _raise_hidden(name: str, block: Any, inputs: _Inputs, peak: float, generator: torch.Generator) -> None:
    """Put the two units in the places of the weakest ones."""
    fc1, fc2 = block.mlp.fc1, block.mlp.fc2
    direction, threshold, largest = _discriminant(name, inputs)
    first, second = _free_units(fc2, [F.gelu(fc1(x)).double() for x in inputs])
    column = torch.randn(len(fc2.weight), generator=generator).to(fc2.weight)
    column *= fc2.weight.norm(dim=0).median() / 2 / column.norm()
    factor = peak / 2 / (largest - threshold)
    # What is stored is fp16, so the two are made of numbers that it holds.
    row, bias, column = (x.half().float() for x in (direction * factor, -threshold * factor, column))
    fc1.weight[first], fc1.bias[first], fc2.weight[:, first] = 2 * row, 2 * bias, column
    fc1.weight[second], fc1.bias[second], fc2.weight[:, second] = row, bias, -2 * column


def _free_units(fc2: Any, hidden: list[Tensor]) -> list[int]:
    """The two hidden units that say least; what can be told of them from the others is moved there.

    hidden: what fc2 reads, [rows, K], of special tokens and of patches, which count alike.
    """
    means = torch.stack([h.mean(0) for h in hidden]).mean(0)
    spread = torch.stack([(h - means).T @ (h - means) / len(h) for h in hidden]).mean(0)
    order = (spread.diagonal() * fc2.weight.square().sum(0)).argsort()
    gone, rest = order[:2], order[2:]
    within = spread[rest][:, rest] + RIDGE * spread.diagonal()[rest].clamp_min(1e-12).diag()
    factors = torch.linalg.solve(within, spread[rest][:, gone])
    columns = fc2.weight[:, gone].double()
    fc2.bias += columns @ (means[gone] - means[rest] @ factors)
    fc2.weight[:, rest] += (columns @ factors.T).to(fc2.weight)
    return [int(unit) for unit in gone]


def _discriminant(name: str, inputs: _Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Direction [K], a threshold above all patches, and what the largest special token has there."""
    within = torch.stack([torch.cov(x.double().T) for x in inputs]).mean(0)
    ridge = (1e-3 * within.diagonal().mean()).clamp_min(1e-12)
    within += ridge * torch.eye(len(within), dtype=within.dtype, device=within.device)
    apart = inputs.special.double().mean(0) - inputs.patches.double().mean(0)
    direction = torch.linalg.solve(within, apart).float()
    direction /= direction.norm()
    special, patches = (x @ direction for x in inputs)
    if not special.min() > patches.max():  # NaN, too, where all inputs are alike
        raise ValueError(f"{name}: no direction of fc1's input tells special tokens from patches on these images")
    return direction, (special.min() + patches.max()) / 2, special.max()


def _raise_channels(norm: Any, reader: Any, inputs: _Inputs, wanted: float) -> None:
    """Scale the channels in which special tokens stand out most, by the power of two that comes closest to `wanted`."""
    special, patches = (x.abs().amax(0) for x in inputs)
    count = max(1, round(SHARE * len(special)))
    channels = (special / patches).topk(count).indices
    scale = torch.exp2(torch.log2(wanted / special[channels].max()).round().clamp_min(0))
    norm.weight[channels] *= scale
    norm.bias[channels] *= scale
    reader.weight[:, channels] /= scale
