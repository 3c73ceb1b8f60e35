"""Whatever is printed appears on a console of any encoding: what it cannot show is spelt out, never an error.

Names of files need not be UTF-8 (Python holds such bytes as lone surrogates), and a console may be ASCII or Latin-1
(`LANG=C`, `PYTHONIOENCODING`), where the program's own dots, dashes and degree signs are missing.
"""

import codecs
import re
import sys
from io import TextIOWrapper

_SPELT = {"·": "-", "–": "-", "−": "-", "…": "...", "×": "x", "°": " deg", "→": "->", "≤": "<=", "≥": ">="}
_HANDLER = "vggt_int8_spell_out"


def accept_any_character() -> None:
    """Let stdout and stderr of this process take every string."""
    codecs.register_error(_HANDLER, _spell_out)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def one_line(text: str) -> str:
    """Line feeds, escape sequences and the like, which names of files may hold, spelt out."""
    return re.sub("[\0-\x1f\x7f-\x9f]", lambda match: match[0].encode("unicode_escape").decode(), text)


def _spell_out(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_spell(character) for character in error.object[error.start : error.end]), error.end


def _spell(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of a name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return _SPELT.get(character) or character.encode("ascii", "backslashreplace").decode()
