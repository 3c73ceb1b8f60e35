"""What the queries of a global block attend to: the tokens of all frames, of key frames, or of their own frame.

The cost of exact attention grows with the square of the number of frames. With key frames there are as many queries,
but every query of a layer attends to the keys and values of the same K frames: the first one, which is the world frame,
and others evenly spaced over the sequence. This is never enabled implicitly: a call requests it, or the recipe that the
model was quantized by. "auto" chooses between exact and key frames by the number of frames, and reports say which.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from vggt_int8.plain_data import check_integer, shown

Looks = Literal["exact", "keyframes", "frames"]
Word = Literal[Looks, "auto"]
WORDS: tuple[Word, ...] = get_args(Word)
MOST_LAYERS = 10_000
KEYFRAMES = 40  # the default: enough for every length that was measured (docs/long_scenes.md)
AUTO_FRAMES = 48  # from which "auto" uses key frames: the shortest scenes in which they measurably lost nothing


@dataclass(frozen=True)
class GlobalAttention:
    """The choice for every layer of a network, checked by `GlobalAttention.of`.

    layers: one word per layer. "exact": all tokens of the scene; "keyframes": tokens of `keyframes` frames; "frames":
        tokens of the query's own frame; "auto": "keyframes" in scenes of at least `AUTO_FRAMES` frames, else "exact".
    keyframes: K; has no effect unless a layer is "keyframes" or "auto".
    why: how "auto" decided, if it did.
    """

    layers: tuple[Word, ...]
    keyframes: int = KEYFRAMES
    why: str = field(default="", compare=False)

    @classmethod
    def of(
        cls,
        depth: int,
        how: str | Sequence[str] | None = None,
        keyframes: int | None = None,
        default: "GlobalAttention | None" = None,
    ) -> "GlobalAttention":
        """From the arguments `global_attention` and `keyframes` of a call, for a network with `depth` global blocks.

        how: one word for all layers or a list with one word per layer; None takes `default`, by default exact.

        Raises ValueError or TypeError, naming the value and what to do instead.
        """
        default = default or cls((WORDS[0],) * depth)
        layers = default.layers if how is None else _checked_layers(how, depth)
        if keyframes is None:
            return cls(layers, default.keyframes)
        check_keyframes(keyframes)
        if not has_keyframes(layers):
            said = "global_attention is 'exact' unless it is said" if how is None else f"got {shown(how)}"
            raise ValueError(
                f"keyframes={keyframes} has no effect: {said}; pass global_attention='keyframes', or a list that has "
                "it for some layers"
            )
        return cls(layers, keyframes)

    def looks(self, layer: int, frames: int) -> Looks:
        """What a layer attends to in a scene of `frames` frames; if the key frames are all frames, that is "exact"."""
        word = self.layers[layer]
        if word == "auto":
            word = "keyframes" if frames >= AUTO_FRAMES else "exact"
        return "exact" if word == "keyframes" and self.keyframes >= frames else word

    def keys(self, layer: int, frames: int) -> int | None:
        """Number of key frames that a layer attends to in a scene of `frames` frames; None if it does not use key
        frames.
        """
        return self.keyframes if self.looks(layer, frames) == "keyframes" else None

    @property
    def most_keys(self) -> int | None:
        """The largest number of key frames that any layer attends to; None if a layer attends to all frames, or may."""
        if "exact" in self.layers or "auto" in self.layers:
            return None
        return self.keyframes if "keyframes" in self.layers else 0

    def within(self, frames: int) -> "GlobalAttention":
        """The effective choice in a scene of `frames` frames: choices that mean the same work compare equal."""
        layers = tuple(self.looks(layer, frames) for layer in range(len(self.layers)))
        why = self.why
        if "auto" in self.layers:
            why = f"auto: {frames} frames; key frames from {self._auto_from} on"
        return GlobalAttention(layers, self.keyframes if "keyframes" in layers else KEYFRAMES, why)

    @property
    def _auto_from(self) -> int:
        """The number of frames from which "auto" uses key frames."""
        return max(AUTO_FRAMES, self.keyframes + 1)

    def __str__(self) -> str:
        """Such as "exact", "keyframes (K = 40)" or "layers: frames in 0-8, keyframes (K = 40) in 9-23"."""
        return self._layers_in_words() + (f" ({self.why})" if self.why else "")

    def _layers_in_words(self) -> str:
        runs: list[tuple[Word, int, int]] = []
        for layer, word in enumerate(self.layers):
            if runs and runs[-1][0] == word:
                runs[-1] = (word, runs[-1][1], layer)
            else:
                runs.append((word, layer, layer))
        named: dict[Word, str] = {word: word for word in WORDS}
        named["keyframes"] = f"keyframes (K = {self.keyframes})"
        named["auto"] = f"auto (exact, or keyframes (K = {self.keyframes}) from {self._auto_from} frames on)"
        if len(runs) == 1:
            return named[runs[0][0]]
        places = [f"{first}" if first == last else f"{first}-{last}" for _, first, last in runs]
        parts = [f"{named[word]} in {place}" for (word, _, _), place in zip(runs, places, strict=True)]
        return "layers: " + ", ".join(parts)


def attention_in_words(how: str | Sequence[str], keyframes: int | None) -> str:
    """A recipe's choice as text, formatted like `GlobalAttention`."""
    return str(GlobalAttention.of(1 if isinstance(how, str) else len(how), how, keyframes))


def has_keyframes(how: str | Sequence[str]) -> bool:
    """Whether a word, or one of several, may select key frames, so that their number matters."""
    words = (how,) if isinstance(how, str) else how
    return "keyframes" in words or "auto" in words


def words_of(text: str) -> str | list[str]:
    """Parse a command-line value: one word, or words with numbers of layers, "frames:9,keyframes:15".

    Raises ValueError for malformed text; `check_words` checks the words.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 1 and ":" not in parts[0]:
        return parts[0]
    words: list[str] = []
    for part in parts:
        word, colon, number = part.partition(":")
        if colon and not (number.isdecimal() and 0 < int(number) <= MOST_LAYERS):
            raise ValueError(f"{shown(part)} names no number of layers: write such as frames:9,keyframes:15")
        words += [word.strip()] * (int(number) if colon else 1)
    return words


def check_words(how: Any) -> None:
    """Raise ValueError or TypeError unless `how` is one of `WORDS`, or a list of them."""
    words: Sequence[Any] = (how,) if isinstance(how, str) else how
    if not isinstance(words, Sequence) or isinstance(words, bytes):
        raise TypeError(f"global_attention is {shown(how)}; it must be one of {_known()}, or a list of them by layer")
    if not words:
        raise ValueError("global_attention is an empty list: give one word for each global block, or one for all")
    if wrong := [word for word in words if word not in WORDS]:
        raise ValueError(f"global_attention has {shown(wrong[0])}; choose from {_known()}")


def check_keyframes(keyframes: Any) -> None:
    """Raise ValueError or TypeError unless this is a valid number of key frames."""
    check_integer("keyframes", keyframes)
    if keyframes < 1:
        raise ValueError(f"keyframes must be at least 1, the first frame; got {keyframes}")


def _checked_layers(how: Any, depth: int) -> tuple[Word, ...]:
    check_words(how)
    layers: tuple[Word, ...] = (how,) * depth if isinstance(how, str) else tuple(how)  # type: ignore[assignment]
    if len(layers) != depth:
        meant = "; the number of key frames is another option: keyframes=, --keyframes" if "keyframes" in layers else ""
        raise ValueError(
            f"global_attention has {len(layers)} words, but the network has {depth} global blocks: give one word for "
            f"each, or a single one for all{meant}"
        )
    return layers


def _known() -> str:
    return ", ".join(repr(word) for word in WORDS)
