"""Options for the attention scope of global blocks, shared by all commands that run a network."""

from typing import TYPE_CHECKING, Annotated

import typer

from vggt_int8.cli import options
from vggt_int8.global_attention import AUTO_FRAMES, WORDS, check_words, has_keyframes, words_of
from vggt_int8.global_attention import GlobalAttention as Scope

if TYPE_CHECKING:
    from vggt_int8.pretrained.int8_network import Int8Network

GlobalAttention = Annotated[
    str | None,
    typer.Option(
        "--global-attention",
        help="Attention scope across frames: exact (all tokens), keyframes (tokens of --keyframes frames: faster above "
        f"about 40 images), auto (exact, or keyframes from {AUTO_FRAMES} images on), frames (their own frame), or by "
        "layer, such as frames:9,keyframes:15. By default as in the recipe.",
        **{**options.checked(lambda text: check_words(words_of(text)), WORDS), "metavar": "WORD"},
    ),
]
Keyframes = Annotated[
    int | None,
    typer.Option(
        "--keyframes", help="Number of key frames, with --global-attention keyframes (40).", **options.between(1)
    ),
]


def check_attention(global_attention: str | None, keyframes: int | None) -> None:
    """Raise ValueError for key frames together with a scope that does not use them. The rest is checked when the
    network and its recipe are known, by `check_scope`.
    """
    if keyframes is None or global_attention is None:
        return
    if not has_keyframes(words_of(global_attention)):
        raise ValueError(
            f"--keyframes {keyframes} has no effect with --global-attention {global_attention}: choose keyframes there"
        )


def check_scope(network: "Int8Network", global_attention: str | None, keyframes: int | None) -> None:
    """Raise ValueError for a scope that the network does not support."""
    words = None if global_attention is None else words_of(global_attention)
    Scope.of(network.config.depth, words, keyframes, network.default_attention)
