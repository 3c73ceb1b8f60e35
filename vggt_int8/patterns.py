r"""Regular expressions on module names, matched in time linear in the length of the name.

A recipe may come with a checkpoint from anywhere, and Python's `re` backtracks: `(a+)+b` on thirty letters takes
minutes, and so do `(x|x)(x|x)...` and `.*.*.*.*`; the text of a pattern does not tell which are safe. Here a pattern is
compiled to an automaton that reads a name once. What such an automaton cannot do is refused: back-references,
look-around, conditions and flags. Everything else has its meaning in Python, whose `re` checks the syntax and decides
which characters an element such as `\d` or `[a-f_]` matches.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache

MOST_CHARACTERS = 1000  # of a pattern
MOST_STATES = 2000  # of a pattern's automaton: `x{500}` makes 500
_KEPT_STATES = 50_000  # in the steps that a pattern remembers from name to name: some 3 MB
_QUANTIFIER = re.compile(r"[*+?]|\{\d*(?:,\d*)?\}")
_ANCHORS = {"^": "start", r"\A": "start", "$": "end", r"\Z": "end", r"\z": "end"}
_NO_SINGLE_CHARACTER = re.compile(r"\\[1-9bB]")


class PatternError(ValueError):
    """A pattern that is not a valid regular expression, or cannot be matched in linear time."""


@dataclass
class _Automaton:
    """States 0, 1, ...; each either consumes a character (`elements`) or has epsilon moves, some of them anchored."""

    elements: list[re.Pattern[str] | None] = field(default_factory=list)
    moves: list[list[tuple[str, int]]] = field(default_factory=list)

    def state(self, element: re.Pattern[str] | None = None) -> int:
        if len(self.moves) >= MOST_STATES:
            raise PatternError(f"it is too large: more than {MOST_STATES} states")
        self.elements.append(element)
        self.moves.append([])
        return len(self.moves) - 1


class Pattern:
    """A compiled pattern. Raises `PatternError` for an invalid one."""

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise PatternError("it is no text")
        if len(text) > MOST_CHARACTERS:
            raise PatternError(f"it has {len(text)} characters; at most {MOST_CHARACTERS} are read")
        try:
            re.compile(text)
            self._automaton = _Automaton()
            self._start, self._last = _Parser(text, self._automaton).parse()
        except (re.error, OverflowError) as error:
            raise PatternError(str(error)) from error
        except RecursionError:
            raise PatternError("it is nested too deep") from None
        self._first = self._reached({self._start}, at_start=True, at_end=False)
        self._steps: dict[tuple[frozenset[int], str], frozenset[int]] = {}
        self._kept = 0

    @property
    def states(self) -> int:
        """Size of the automaton: the largest cost of reading one character."""
        return len(self._automaton.moves)

    def fullmatch(self, name: str) -> bool:
        """Whether the pattern matches the whole name."""
        last = len(name) - 1
        states = self._first if name else self._reached({self._start}, at_start=True, at_end=True)
        for index, character in enumerate(name):
            if not states:
                return False
            # A step at the end may also pass "$", so it differs from the same step before.
            key = (states, character if index < last else character + "$")
            following = self._steps.get(key)
            if following is None:
                following = self._after(states, character, at_end=index == last)
                self._kept += len(following) + 1
                if self._kept > _KEPT_STATES:
                    self._steps.clear()
                    self._kept = len(following) + 1
                self._steps[key] = following
            states = following
        return self._last in states

    def _after(self, states: frozenset[int], character: str, at_end: bool) -> frozenset[int]:
        elements = self._automaton.elements
        reached = {
            target
            for state in states
            if (element := elements[state]) is not None and element.fullmatch(character)
            for _, target in self._automaton.moves[state]
        }
        return self._reached(reached, at_start=False, at_end=at_end)

    def _reached(self, states: set[int], at_start: bool, at_end: bool) -> frozenset[int]:
        """These states and their epsilon closure."""
        allowed = {"": True, "start": at_start, "end": at_end}
        waiting, found = list(states), set(states)
        while waiting:
            state = waiting.pop()
            if self._automaton.elements[state] is None:
                for condition, target in self._automaton.moves[state]:
                    if allowed[condition] and target not in found:
                        found.add(target)
                        waiting.append(target)
        return frozenset(found)


class _Parser:
    """Parses a pattern that `re` has accepted and builds its automaton piece by piece: (first state, last state)."""

    def __init__(self, text: str, automaton: _Automaton) -> None:
        self.text, self.at, self.automaton = text, 0, automaton

    def parse(self) -> tuple[int, int]:
        piece = self._alternatives()
        if self.at != len(self.text):
            raise PatternError(f"unbalanced parenthesis at {self.at}")
        return piece

    def _alternatives(self) -> tuple[int, int]:
        first, last = self.automaton.state(), self.automaton.state()
        while True:
            start, end = self._sequence()
            self._move(first, start)
            self._move(end, last)
            if not self.text.startswith("|", self.at):
                return first, last
            self.at += 1

    def _sequence(self) -> tuple[int, int]:
        first = last = self.automaton.state()
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            begin = self.at
            start, end = self._element()
            quantifier = _QUANTIFIER.match(self.text, self.at)
            if quantifier and quantifier[0] != "{}":  # which is two characters
                self.at = quantifier.end()
                start, end = self._repeated(begin, quantifier, (start, end))
            self._move(last, start)
            last = end
        return first, last

    def _element(self) -> tuple[int, int]:
        text, at = self.text, self.at
        if text[at] == "(":
            return self._group()
        size = 2 if text[at] == "\\" else 1
        if text[at] == "[":
            size = self._end_of_class() - at
        token = text[at : at + size]
        self.at += size
        if token in _ANCHORS:
            first, last = self.automaton.state(), self.automaton.state()
            self.automaton.moves[first].append((_ANCHORS[token], last))
            return first, last
        if token[0] == "\\" and token[1:] in "xuUN0":
            raise PatternError(f"{token} at {at} is not read: write the character itself")
        if _NO_SINGLE_CHARACTER.fullmatch(token):
            raise PatternError(f"{token} at {at} (a back-reference or a word's edge) cannot be matched in linear time")
        first, last = self.automaton.state(re.compile(token)), self.automaton.state()
        self.automaton.moves[first].append(("", last))
        return first, last

    def _group(self) -> tuple[int, int]:
        at = self.at
        opening = re.compile(r"\((?:\?:|\?P<\w+>|(?!\?))").match(self.text, at)
        if opening is None:
            raise PatternError(
                f"{self.text[at : at + 4]} at {at} (look-around, a back-reference or flags) cannot be matched in "
                "linear time: use exclude, or a rule above that takes those layers"
            )
        self.at = opening.end()
        piece = self._alternatives()
        self.at += 1  # the closing one, which `re` has seen
        return piece

    def _end_of_class(self) -> int:
        at = self.at + 1
        at += self.text.startswith("^", at)
        at += self.text.startswith("]", at)  # a bracket that comes first is a character
        while self.text[at] != "]":
            at += 2 if self.text[at] == "\\" else 1
        return at + 1

    def _repeated(self, begin: int, quantifier: re.Match[str], piece: tuple[int, int]) -> tuple[int, int]:
        least, most = _counts(quantifier[0])
        if self.text[self.at : self.at + 1] == "?":  # as few as possible: the same whole names fit
            self.at += 1
        elif self.text[self.at : self.at + 1] == "+":
            raise PatternError(f"{quantifier[0]}+ at {begin}: possessive repeats cannot be matched in linear time")
        after = self.at
        first = last = self.automaton.state()
        for number in range(max(least, 1 if most is None else most)):
            if number:  # another copy of the element
                self.at = begin
                piece = self._element()
            self._move(last, piece[0])
            if number >= least:
                self._move(last, piece[1])
            last = piece[1]
        if most is None:
            self._move(piece[1], piece[0])
        self.at = after
        return first, last

    def _move(self, source: int, target: int) -> None:
        self.automaton.moves[source].append(("", target))


def _counts(quantifier: str) -> tuple[int, int | None]:
    if quantifier in "*+?":
        return (1 if quantifier == "+" else 0), (1 if quantifier == "?" else None)
    low, comma, high = quantifier[1:-1].partition(",")
    least = int(low or 0)
    return least, (int(high) if high else None) if comma else least


@lru_cache(maxsize=256)
def compile_pattern(text: str) -> Pattern:
    """The compiled pattern, cached. Raises `PatternError`."""
    return Pattern(text)


def fits(pattern: str, name: str) -> bool:
    """Whether a pattern matches a whole name, like `re.fullmatch`, in linear time."""
    return compile_pattern(pattern).fullmatch(name)
