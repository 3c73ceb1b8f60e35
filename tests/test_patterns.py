"""Patterns: what Python's `re` says, in linear time, or a refusal."""

import json
import random
import re
import time
from pathlib import Path

import pytest

from vggt_int8.patterns import MOST_CHARACTERS, Pattern, PatternError, fits

ELEMENTS = ["a", "b", "c", "1", ".", r"\.", "[ab]", "[^a]", r"[]\]a]", r"\w", r"\d", "{", "a{x}"]
QUANTIFIERS = ["*", "+", "?", "{2}", "{1,3}", "{,2}", "{2,}", "*?", "+?", "??", "{0}", "{}"]


def random_pattern(rng: random.Random, depth: int) -> str:
    choice = rng.random()
    if depth == 0 or choice < 0.35:
        return rng.choice(ELEMENTS)
    inner = random_pattern(rng, depth - 1)
    if choice < 0.6:
        return inner + random_pattern(rng, depth - 1)
    if choice < 0.75:
        return f"({inner}|{random_pattern(rng, depth - 1)})"
    if choice < 0.8:
        return f"(?:{inner}|)"
    if choice < 0.86:
        return rng.choice([f"^{inner}", f"{inner}$", rf"\A{inner}\Z"])
    return f"({inner}){rng.choice(QUANTIFIERS)}"


def test_a_pattern_fits_what_it_fits_in_python() -> None:
    rng, fitting = random.Random(0), 0
    for _ in range(800):
        text = random_pattern(rng, 5)
        pattern = Pattern(text)
        for _ in range(12):
            name = "".join(rng.choice("abc.1]{x}") for _ in range(rng.randint(0, 7)))
            want = re.fullmatch(text, name) is not None
            assert pattern.fullmatch(name) is want, (text, name)
            fitting += want
    assert fitting > 300, "the comparison would show nothing if hardly any name fitted"


@pytest.fixture(scope="module")
def names() -> list[str]:
    """Names of VGGT-1B's modules with weights."""
    path = Path(__file__).parent / "data" / "parity" / "vggt_1b_state_dict.json"
    return [name.removesuffix(".weight") for name in json.loads(path.read_text()) if name.endswith(".weight")]


@pytest.mark.parametrize(
    "text", ["(a+)+#", "(.*)*#", "(x|x|.)*#", ".*" * 100 + "#", "(.|..|...)*" * 20 + "#", "(.?){150}#", r"(\w+\.?)+#"]
)
def test_no_pattern_takes_long(names: list[str], text: str) -> None:
    start = time.process_time()
    assert not any(Pattern(text).fullmatch(name * 3) for name in names[:60])
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a(?=b)", "look-around.*use exclude"),
        ("(?!head).*", "look-around"),
        (r"(a)\1", "back-reference"),
        ("(?P<x>a)(?P=x)", "back-reference"),
        ("(?i)a", "flags"),
        ("(?>a)b", "linear time"),
        ("a*+", "possessive"),
        (r"\bhead", "a word's edge"),
        (r"\x61", "write the character itself"),
        ("[a", "unterminated character set"),
        ("*", "nothing to repeat"),
        ("(" * 490 + ")" * 490, "nested too deep|too large"),
        ("a" * (MOST_CHARACTERS + 1), "has 1001 characters"),
        ("((a{90}){90}){90}", "too large"),
        ("x{99999999999}", "too large"),
    ],
)
def test_what_an_automaton_cannot_do_is_refused(text: str, message: str) -> None:
    with pytest.raises(PatternError, match=message):
        Pattern(text)


def test_names_and_anchors() -> None:
    assert fits(r"^(camera|depth)_head\..*$", "camera_head.trunk.0.attn.qkv")
    assert not fits(r"blocks\.1", "blocks.10")
    assert fits("(?P<part>head)", "head")
    assert fits("", "")
    assert not fits("a$b", "ab")
