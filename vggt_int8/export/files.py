"""Whole files and whole folders, or none: everything is written under a temporary name first, then renamed."""

import json
import re
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any


@contextmanager
def staged_folder(
    out: str | PathLike[str], *, entries: Collection[str], overwrite: bool | None = False
) -> Iterator[Path]:
    """Give an empty folder to write into; on success its content becomes `out`, on any error nothing stays.

    entries: the names that this kind of output may have at its top level. `overwrite=True` replaces these in an
    existing folder, old ones that the new run lacks included, and leaves all other files alone. None: the caller
    offers no overwriting, so the message does not either.

    Raises FileExistsError if `out` is a file, or holds anything and `overwrite` is False. The check comes first,
    so enter this before any long computation.
    """
    out = Path(out).expanduser()
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"output {out} is a file, a folder is needed: choose another name")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        way_out = "" if overwrite is None else ", or overwrite it (--overwrite, overwrite=True)"
        raise FileExistsError(f"output folder {out} is not empty: choose another one{way_out}")
    # An existing folder may be a mount point or someone's working directory: it is filled, never replaced.
    is_new = not out.exists()
    parent = out.parent if is_new else out
    made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    staging = parent / f".{out.name}.partial-{secrets.token_hex(4)}"
    staging.mkdir()
    try:
        yield staging
        unexpected = {path.name for path in staging.iterdir()} - set(entries)
        if unexpected:
            raise ValueError(f"{sorted(unexpected)} must be listed in entries {sorted(entries)}")
        if is_new:
            staging.rename(out)
        else:
            _replace_entries(staging, out, entries)
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # already gone after a rename
        for folder in made:
            if any(folder.iterdir()):
                break
            folder.rmdir()


def write_json(path: Path, document: Any) -> None:
    """Write strict JSON (no NaN or Infinity), indented, a list of numbers on one line."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # Strings hold no raw newline and the pattern no quote, so only lists of numbers and null can match.
    text = re.sub(r'\[\n[^\[\]{}"]*\]', lambda match: re.sub(r"\n *", "", match[0]).replace(",", ", "), text)
    temporary = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def _replace_entries(staging: Path, out: Path, entries: Collection[str]) -> None:
    """Swap by renames alone; the old entries go into the staging folder and vanish with it."""
    retired = staging / f"retired-{secrets.token_hex(4)}"
    new = list(staging.iterdir())
    retired.mkdir()
    for name in entries:
        if (out / name).exists():
            (out / name).rename(retired / name)
    for path in new:
        path.rename(out / path.name)
