"""Static scales in the form that fused blocks pass to kernels. If special tokens (camera, registers) have their own
scale, that is one scale per token of a frame, because kernels only know rows.

They are rebuilt in every call, by a few launches for all layers together, so that a captured CUDA graph reads the
layers' current scales when it is replayed.
"""

from collections.abc import Iterable, Iterator
from itertools import chain

import torch
from torch import Tensor, nn

from vggt_int8.model.layers import Block
from vggt_int8.quant.linear import Int8Linear
from vggt_int8.runtime.memory import parts

EVERY_TOKEN = slice(None)


class TokenScales:
    """The static scales of the layers of some blocks, for frames of `tokens` tokens each.

    Without blocks: for layers none of which has special tokens.
    """

    def __init__(self, blocks: Iterable[nn.Module] = (), tokens: int = 1) -> None:
        self._tokens = tokens
        special: dict[int, list[Int8Linear]] = {}
        for layer in chain.from_iterable(map(_linears, blocks)):
            if isinstance(layer, Int8Linear) and layer.special_tokens:
                special.setdefault(layer.special_tokens, []).append(layer)
        self._of: dict[Int8Linear, Tensor] = {}
        for count, layers in special.items():
            self._of.update(zip(layers, _of_tokens(layers, count, tokens), strict=True))

    def of(self, layer: Int8Linear, tokens: slice = EVERY_TOKEN) -> Tensor | None:
        """`input_scale` as kernels take it, for rows that are whole frames, or for the slice `tokens` of one frame:
        fp32 [1], or one per token; None for a layer without static scales.
        """
        found = self._of.get(layer)
        return layer.input_scale if found is None else found[tokens]

    def parts(self, rows: int, at_most: int) -> Iterator[tuple[slice, slice]]:
        """Split `rows` into parts of at most `at_most` rows, each with its slice of tokens for `of`: whole frames, or
        tokens of one frame.
        """
        if not self._of:
            yield from ((part, EVERY_TOKEN) for part in parts(rows, at_most))
        elif at_most >= self._tokens:
            for part in parts(rows // self._tokens, at_most // self._tokens):
                yield slice(part.start * self._tokens, part.stop * self._tokens), EVERY_TOKEN
        else:
            for first in range(0, rows, self._tokens):
                for part in parts(self._tokens, at_most):
                    yield slice(first + part.start, first + part.stop), part


def _linears(block: nn.Module) -> tuple[nn.Module, ...]:
    assert isinstance(block, Block)
    return block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2


def _of_tokens(layers: list[Int8Linear], special: int, tokens: int) -> Tensor:
    """[L, P] fp32. Rows are padded to 16-byte alignment, which kernels are compiled for."""
    scales = torch.stack([layer.input_scale for layer in layers if layer.input_scale is not None])
    padded = tokens + -tokens % 4
    is_patch = torch.arange(padded, device=scales.device) >= special
    return torch.where(is_patch, scales[:, 1:], scales[:, :1])[:, :tokens]
