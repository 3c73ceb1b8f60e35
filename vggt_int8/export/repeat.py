"""What a report needs to make its run reproducible: the exact model, the exact images, and the command."""

import hashlib
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from vggt_int8.embedded import resolve_source

_PIECES, _PIECE = 64, 1 << 16  # of a file of weights that is not read as a whole
_START = 1 << 20  # covers the header of a safetensors file, which names and shapes every tensor
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def identify_model(source: str) -> dict[str, str | None]:
    """`{"kind", "value"}`: identifies the weights without reading gigabytes.

    kind "save_id": computed from the contents when the checkpoint was saved, and compared at every load.
    kind "commit": of a Hub model's repository.
    kind "samples": sha256 over each weight file's name and size, its first MB and 64 evenly spaced blocks of 64 KB; a
    file of up to 5 MB is read completely.

    None and None for a source whose files no longer exist.
    """
    path = Path(resolve_source(source))
    if not path.exists():
        commit = _cached_commit(source)
        return {"kind": None if commit is None else "commit", "value": commit}
    save_id = _save_id(path / "config.json") if path.is_dir() else None
    if save_id is not None:
        return {"kind": "save_id", "value": save_id}
    files = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.suffix in _WEIGHTS and f.is_file())
    total = hashlib.sha256()
    for file in files:
        add_samples(total, file)
    return {"kind": "samples", "value": total.hexdigest()}


def identify_file(path: Path) -> dict[str, Any]:
    """`{"bytes", "sha256"}` of a file's whole content."""
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": file.tell()}


def command_line() -> str:
    """How this process was called, for a shell; what is no printable Unicode stands as bytes in `$'…'`."""
    return " ".join(map(_word, ["vggt-int8", *sys.argv[1:]]))


def readable(text: str) -> str:
    """Text of the system as valid Unicode: bytes that are not UTF-8 as \\xe9."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def _word(text: str) -> str:
    if text.isprintable():
        return shlex.quote(text)
    return (
        "$'" + "".join(chr(b) if 32 <= b < 127 and b not in b"'\\" else f"\\x{b:02x}" for b in os.fsencode(text)) + "'"
    )


def _save_id(config: Path) -> str | None:
    if not config.is_file():
        return None
    save = json.loads(config.read_text(encoding="utf-8")).get("save")
    return str(save["id"]) if isinstance(save, dict) and "id" in save else None


def _cached_commit(repo_id: str) -> str | None:
    """Hub files lie in a folder that is named after their commit."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo_id, "config.json")
    return Path(found).parent.name if isinstance(found, str) else None


def add_samples(total: "hashlib._Hash", path: Path) -> None:
    """Into a digest: a file's name, size, first MB and 64 pieces of 64 KB; all of a file of up to 5 MB."""
    size = path.stat().st_size
    total.update(f"{path.name} {size}\n".encode("utf-8", "surrogateescape"))
    with path.open("rb") as file:
        if size <= _START + _PIECES * _PIECE:
            total.update(file.read())
            return
        total.update(file.read(_START))
        for number in range(_PIECES):  # the last one ends with the file
            file.seek(_START + (size - _START - _PIECE) * number // (_PIECES - 1))
            total.update(file.read(_PIECE))
