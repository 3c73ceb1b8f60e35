"""Makes all output printable on a console of any encoding: unsupported characters are escaped, never an error.

File names need not be UTF-8 (Python represents such bytes as lone surrogates), and a console may be ASCII or Latin-1
(`LANG=C`, `PYTHONIOENCODING`), which lack the program's own dots, dashes and degree signs.
"""

import codecs
import re
import sys
from io import TextIOWrapper

_SPELT = {"·": "-", "–": "-", "−": "-", "…": "...", "×": "x", "°": " deg", "→": "->", "≤": "<=", "≥": ">="}
_HANDLER = "vggt_int8_spell_out"


def accept_any_character() -> None:
    """Make stdout and stderr of this process accept every string."""
    codecs.register_error(_HANDLER, _spell_out)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def one_line(text: str) -> str:
    """Escape line feeds, escape sequences and the like, which file names may contain."""
    return re.sub("[\0-\x1f\x7f-\x9f]", lambda match: match[0].encode("unicode_escape").decode(), text)


def _spell_out(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_spell(character) for character in error.object[error.start : error.end]), error.end


def _spell(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of a name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return _SPELT.get(character) or character.encode("ascii", "backslashreplace").decode()
