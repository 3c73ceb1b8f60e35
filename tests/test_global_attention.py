"""The words for what global blocks look at: what is refused, what a choice comes to, how it reads."""

import pytest

from vggt_int8.global_attention import (
    AUTO_FRAMES,
    KEYFRAMES,
    GlobalAttention,
    attention_in_words,
    check_words,
    words_of,
)
from vggt_int8.recipe import Recipe, RecipeError


def test_what_is_left_out_is_exact_or_the_default() -> None:
    exact = GlobalAttention.of(3)
    assert exact.layers == ("exact",) * 3
    assert GlobalAttention.of(3, "keyframes").keyframes == KEYFRAMES
    default = GlobalAttention.of(3, ["frames", "keyframes", "exact"], 7)
    assert GlobalAttention.of(3, default=default) == default
    assert GlobalAttention.of(3, keyframes=5, default=default) == GlobalAttention(default.layers, 5)
    assert GlobalAttention.of(3, "keyframes", default=default).keyframes == 7
    assert GlobalAttention.of(3, "exact", default=default).layers == exact.layers


@pytest.mark.parametrize(
    ("how", "keyframes", "error", "message"),
    [
        ("key", None, ValueError, "global_attention has 'key'; choose from 'exact', 'keyframes', 'frames', 'auto'"),
        (["exact", "all", "exact"], None, ValueError, "has 'all'"),
        (["exact"] * 2, None, ValueError, "2 words, but the network has 3 global blocks"),
        (["keyframes"] * 9, None, ValueError, "9 words, .*; the number of key frames is another option: keyframes="),
        ([], None, ValueError, "global_attention is an empty list"),
        (b"exact", None, TypeError, "global_attention is b'exact'"),
        (40, None, TypeError, "global_attention is 40"),
        ("keyframes", 0, ValueError, "keyframes must be at least 1, the first frame; got 0"),
        ("keyframes", 2.0, TypeError, "keyframes is 2.0; it must be an integer"),
        ("exact", 40, ValueError, "keyframes=40 has no effect: got 'exact'; pass global_attention='keyframes'"),
        (["frames", "exact", "exact"], 40, ValueError, "keyframes=40 has no effect"),
        (None, 40, ValueError, "keyframes=40 has no effect: global_attention is 'exact' unless it is said"),
    ],
)
def test_what_does_not_fit_is_refused(how: object, keyframes: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GlobalAttention.of(3, how, keyframes)  # type: ignore[arg-type]


def test_as_many_key_frames_as_frames_are_exact() -> None:
    mixed = GlobalAttention.of(3, ["frames", "keyframes", "exact"], 4)
    assert [mixed.looks(layer, 5) for layer in range(3)] == ["frames", "keyframes", "exact"]
    assert [mixed.keys(layer, 5) for layer in range(3)] == [None, 4, None]
    for frames in (1, 3, 4):
        assert mixed.looks(1, frames) == "exact"
        assert mixed.keys(1, frames) is None
    assert GlobalAttention.of(3, "keyframes", 9).within(9) == GlobalAttention.of(3)
    assert mixed.within(5) == mixed


def test_auto_goes_by_the_number_of_frames_and_says_so() -> None:
    auto = GlobalAttention.of(2, "auto", 24)
    assert auto.most_keys is None
    short, long = auto.within(AUTO_FRAMES - 1), auto.within(AUTO_FRAMES)
    assert (short, long) == (GlobalAttention.of(2), GlobalAttention.of(2, "keyframes", 24))
    assert hash(long) == hash(GlobalAttention.of(2, "keyframes", 24))  # one CUDA graph for both
    assert str(short) == f"exact (auto: {AUTO_FRAMES - 1} frames; key frames from {AUTO_FRAMES} on)"
    assert str(long) == f"keyframes (K = 24) (auto: {AUTO_FRAMES} frames; key frames from {AUTO_FRAMES} on)"
    many = GlobalAttention.of(2, "auto", 100)
    assert str(many.within(100)) == "exact (auto: 100 frames; key frames from 101 on)"
    assert many.within(101) == GlobalAttention.of(2, "keyframes", 100)
    mixed = GlobalAttention.of(3, ["frames", "auto", "exact"], 24)
    assert [mixed.looks(layer, AUTO_FRAMES) for layer in range(3)] == ["frames", "keyframes", "exact"]
    assert [mixed.keys(layer, AUTO_FRAMES) for layer in range(3)] == [None, 24, None]
    assert mixed.within(AUTO_FRAMES).within(AUTO_FRAMES).why == mixed.within(AUTO_FRAMES).why
    assert str(auto) == f"auto (exact, or keyframes (K = 24) from {AUTO_FRAMES} frames on)"


def test_words_of_a_command_line() -> None:
    assert words_of("keyframes") == "keyframes"
    assert words_of("frames:2, keyframes:1,exact") == ["frames", "frames", "keyframes", "exact"]
    for text in ("frames:0", "frames:x", "frames:-1", "frames:99999"):
        with pytest.raises(ValueError, match=f"'{text}' names no number of layers"):
            words_of(text)
    with pytest.raises(ValueError, match="has 'key'"):
        check_words(words_of("key:2,exact"))


def test_how_it_reads() -> None:
    assert str(GlobalAttention.of(24)) == "exact"
    assert str(GlobalAttention.of(24, "keyframes")) == "keyframes (K = 40)"
    early = ["frames"] * 9 + ["keyframes"] * 14 + ["exact"]
    assert str(GlobalAttention.of(24, early, 24)) == "layers: frames in 0-8, keyframes (K = 24) in 9-22, exact in 23"
    assert str(GlobalAttention.of(24, "auto")) == "auto (exact, or keyframes (K = 40) from 48 frames on)"
    assert str(GlobalAttention.of(24, "auto", 60)) == "auto (exact, or keyframes (K = 60) from 61 frames on)"
    assert attention_in_words(["frames", "exact"], None) == "layers: frames in 0, exact in 1"


def test_a_recipe_holds_it() -> None:
    recipe = Recipe(global_attention=["keyframes", "exact"], keyframes=3)  # type: ignore[arg-type]
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert recipe.to_dict()["global_attention"] == ["keyframes", "exact"]
    assert Recipe(global_attention="auto", keyframes=24).to_dict()["keyframes"] == 24
    assert not {"global_attention", "keyframes"} & Recipe().to_dict().keys()
    for fields, message in (
        ({"global_attention": "all"}, "global_attention has 'all'"),
        ({"keyframes": 3}, "keyframes 3 has no effect: global_attention is 'exact'"),
        ({"global_attention": "keyframes", "keyframes": 0}, "keyframes is 0; it must be an integer >= 1"),
        ({"global_attention": 3}, "global_attention is 3"),
    ):
        with pytest.raises(RecipeError, match=message):
            Recipe(**fields)
    with pytest.raises(RecipeError, match="says nothing of layers"):
        Recipe.from_dict({"global_attention": "keyframes"})
