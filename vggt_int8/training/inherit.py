"""Initialize a new network with the weights of a trained one, which may be of the other model family.

The source's tensors are first converted to the layout of the new network: selected blocks, the new family's names, and
as many neurons in each MLP as the new network has. Then every tensor with a matching name and shape is copied; all
others keep their initialization.

Conversion from VGGT to VGGT-Omega, which preserves the function of the weights:

- Query and key channels are permuted, since the two families pair them differently for rotary embeddings. For images as
  wide in patches as VGGT was trained on, the rotation angles between neighbouring patches are nearly the same.
- VGGT's encoder adds position embeddings to its patches. Their mean is added to the patch embedding's bias. Its queries
  and keys have no rotary embedding, so they get a new basis with the same products, in which the largest components are
  in the channels that VGGT-Omega rotates least.
- The keys' bias is dropped, since VGGT-Omega has none. In the embedded model it has little effect.
- The camera head keeps its initialization: VGGT's refines a given pose, VGGT-Omega's predicts one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vggt_int8.model.configs import AnyConfig
from vggt_int8.model.families import AnyNetwork
from vggt_int8.model.vggt import VGGT

ENCODER = "aggregator.patch_embed."
OMEGA_NAMES = (  # beginnings of names in VGGT and in VGGT-Omega; the first that fits
    (f"{ENCODER}register_tokens", f"{ENCODER}storage_tokens"),
    ("aggregator.global_blocks.", "aggregator.inter_frame_blocks."),
    ("depth_head.", "dense_head."),
)
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Inherited:
    """What a network inherited: names of its parameters, and how many values out of how many."""

    taken: tuple[str, ...]
    fresh: tuple[str, ...]
    numbers: int
    of: int

    def __str__(self) -> str:
        parts = sorted({".".join(name.split(".")[:2]) for name in self.fresh})
        return (
            f"{self.numbers / 1e6:.2f} of {self.of / 1e6:.2f} M parameters; fresh in: {', '.join(parts) or 'nothing'}"
        )


@torch.no_grad()
def inherit(
    network: AnyNetwork, source: AnyNetwork, encoder_blocks: Sequence[int] = (), layers: Sequence[int] = ()
) -> Inherited:
    """Copy the source's weights into `network`, in place, as far as they fit.

    encoder_blocks, layers: for each of the network's blocks, the source block that initializes it; () for the first
        ones.

    Raises ValueError without changing anything if the source has no such block, if attention heads differ in width, if
    the families cannot be converted, or if no matrix of the aggregators matches.
    """
    ours, theirs = network.config, source.config
    _check_heads(ours, theirs)
    tensors = {name: tensor.detach().float() for name, tensor in source.named_parameters()}
    blocks = {
        f"{ENCODER}blocks.": chosen(encoder_blocks, ours.encoder_depth, theirs.encoder_depth, "encoder_blocks"),
        **dict.fromkeys(
            ("aggregator.frame_blocks.", "aggregator.global_blocks.", "aggregator.inter_frame_blocks."),
            chosen(layers, ours.depth, theirs.depth, "layers"),
        ),
    }
    tensors = _choose_blocks(tensors, blocks)
    if ours.model_type != theirs.model_type:
        if not isinstance(source, VGGT):
            raise ValueError(f"a {ours.model_type} cannot begin as a {theirs.model_type}")
        _turn_as_omega(tensors, ours.num_heads)
        _leave_out_positions(tensors, theirs.encoder_num_heads)
        tensors = {_omega_name(name): tensor for name, tensor in tensors.items() if not name.startswith("camera_head.")}
    own = dict(network.named_parameters())
    _narrow_mlps(tensors, own)
    taken = [name for name in own if name in tensors and tensors[name].shape == own[name].shape]
    if not any(name.startswith("aggregator.") and own[name].dim() == 2 for name in taken):
        raise ValueError("no matrix of its aggregator has the name and shape of one of [model]")
    for name in taken:
        own[name].copy_(tensors[name])
    fresh = tuple(name for name in own if name not in set(taken))
    numbers = sum(own[name].numel() for name in taken)
    return Inherited(tuple(taken), fresh, numbers, sum(parameter.numel() for parameter in own.values()))


def _check_heads(ours: AnyConfig, theirs: AnyConfig) -> None:
    """Raise ValueError if head widths differ: channels with the same names would then belong to different heads."""
    for field in ("num_heads", "encoder_num_heads"):
        widths = [config.embed_dim // getattr(config, field) for config in (ours, theirs)]
        if widths[0] != widths[1]:
            raise ValueError(f"its {field} makes heads of {widths[1]} channels, that of [model] heads of {widths[0]}")


def chosen(asked: Sequence[int], ours: int, theirs: int, what: str) -> tuple[int, ...]:
    """For each of the `ours` blocks, the index of the block of `theirs` that initializes it: as requested, or the first
    ones.

    Raises ValueError for more blocks than the network has, or for blocks that the source does not have.
    """
    found = tuple(asked) or tuple(range(min(ours, theirs)))
    if len(found) > ours or any(not 0 <= index < theirs for index in found):
        raise ValueError(f"{what} is {list(found)}: it can name {ours} of the blocks 0 ... {theirs - 1}")
    return found


def _choose_blocks(tensors: Mapping[str, Tensor], blocks: Mapping[str, Iterable[int]]) -> Tensors:
    """Tensors of the chosen blocks with their new numbers, and all tensors outside blocks."""
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(tuple(blocks))}
    for prefix, chosen in blocks.items():
        for new, old in enumerate(chosen):
            start = f"{prefix}{old}."
            inside = (name for name in tensors if name.startswith(start))
            kept |= {f"{prefix}{new}.{name.removeprefix(start)}": tensors[name].clone() for name in inside}
    return kept


def _turn_as_omega(tensors: Tensors, heads: int) -> None:
    """Permute the aggregator's queries and keys from VGGT's channel order (row a, row b, column a, column b; a and b
    are rotated as a pair) to VGGT-Omega's (row a, column a, row b, column b), in place.
    """
    for name in [
        name for name in tensors if name.startswith(("aggregator.frame_blocks.", "aggregator.global_blocks."))
    ]:
        if name.endswith(("q_norm.weight", "q_norm.bias", "k_norm.weight", "k_norm.bias")):
            tensors[name] = columns_before_b(tensors[name])
        elif name.endswith(("attn.qkv.weight", "attn.qkv.bias")):
            split = tensors[name].unflatten(0, (3, heads, -1))  # [3, H, D, ...]
            turned = [torch.stack([columns_before_b(head) for head in part]) for part in split[:2]]
            tensors[name] = torch.stack([*turned, split[2]]).flatten(0, 2)


def columns_before_b(channels: Tensor) -> Tensor:
    """[D, ...] with the second and third quarter swapped."""
    row_a, row_b, column_a, column_b = channels.chunk(4)
    return torch.cat([row_a, column_a, row_b, column_b])


def _leave_out_positions(tensors: Tensors, heads: int) -> None:
    """Remove the encoder's position embeddings, and prepare its queries and keys for rotary embeddings, in place."""
    positions = tensors.pop(f"{ENCODER}pos_embed")
    tensors[f"{ENCODER}cls_token"] = tensors[f"{ENCODER}cls_token"] + positions[:, :1]
    patch_bias = f"{ENCODER}patch_embed.proj.bias"
    tensors[patch_bias] = tensors[patch_bias] + positions[0, 1:].mean(0)
    for name in [name for name in tensors if name.startswith(f"{ENCODER}blocks.") and name.endswith("qkv.weight")]:
        bias_name = f"{name.removesuffix('weight')}bias"
        weight, bias = (tensors[key].unflatten(0, (3, heads, -1)) for key in (name, bias_name))
        rebased = [_strongest_turned_least(*head) for head in zip(weight[0], bias[0], weight[1], strict=True)]
        query, query_bias, key = (torch.stack(part) for part in zip(*rebased, strict=True))
        tensors[name] = torch.stack([query, key, weight[2]]).flatten(0, 2)
        # The keys' bias adds the same value to all logits of a query, so softmax is unaffected.
        tensors[bias_name] = torch.stack([query_bias, torch.zeros_like(query_bias), bias[2]]).flatten()


def _strongest_turned_least(query: Tensor, query_bias: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A head's queries [D, C], [D] and keys [D, C] in another basis with the same products.

    The axes are the singular vectors of the products, the largest in the channels with the longest wavelengths (see
    `axial_rope_table`: wave i of D / 4 rotates channels i, D/4 + i, D/2 + i and 3 D/4 + i).
    """
    dim = len(query)
    with_bias = torch.cat([query, query_bias[:, None]], dim=1)
    left, sizes, right = torch.linalg.svd(with_bias.double().T @ key.double(), full_matrices=False)
    roots = sizes[:dim].sqrt()
    queries, keys = (left[:, :dim] * roots).T, roots[:, None] * right[:dim]
    places = torch.arange(dim).view(4, -1).flip(1).T.flatten()  # of the singular vectors, from the largest on
    order = torch.empty_like(places)
    order[places] = torch.arange(dim)
    queries, keys = queries[order].float(), keys[order].float()
    return queries[:, :-1], queries[:, -1], keys


def _omega_name(name: str) -> str:
    for start, theirs in OMEGA_NAMES:
        if name.startswith(start):
            return theirs + name.removeprefix(start)
    return name


def _narrow_mlps(tensors: Tensors, own: Mapping[str, Tensor]) -> None:
    """Keep the neurons with the largest weights in each MLP, as many as the new network has, in their order. In
    place.
    """
    for name in [name for name in tensors if name.endswith("mlp.fc1.weight") and name in own]:
        start, wanted = name.removesuffix("fc1.weight"), len(own[name])
        into, out = tensors[name], tensors[f"{start}fc2.weight"]
        if wanted >= len(into):
            continue
        kept = (into.norm(dim=1) * out.norm(dim=0)).topk(wanted).indices.sort().values
        tensors[name], tensors[f"{start}fc1.bias"] = into[kept], tensors[f"{start}fc1.bias"][kept]
        tensors[f"{start}fc2.weight"] = out[:, kept]
