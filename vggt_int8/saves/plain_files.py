"""Checks the files of a checkpoint before they are read: they exist, are regular files inside their folder, and small.

Missing, unreadable and not a regular file are three different errors, and none of them is corruption.
"""

import json
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from vggt_int8.listing import first_few
from vggt_int8.placeholders import LOOKED_AT, placeholder
from vggt_int8.plain_data import shown, too_deep
from vggt_int8.saves.errors import CheckpointError

# What transformers looks for in a folder, in its order.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
SINGLE_FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_MOST_JSON = 16 * 1024 * 1024  # bytes; the index of VGGT-1B takes 0.15 MB


def check_plain_file(path: str | Path) -> None:
    """Raise `CheckpointError` if there is no such file, if it is something else, or if it may not be read."""
    try:
        kind = os.stat(path).st_mode
    except FileNotFoundError:
        if os.path.islink(path):
            target = os.readlink(path)
            raise CheckpointError(f"{path} is a link to {target}, which does not exist") from None
        raise CheckpointError(f"there is no file {path}") from None
    except OSError as error:
        raise CheckpointError(f"cannot look at {path}: {error.strerror}") from error
    if not stat.S_ISREG(kind):
        named = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise CheckpointError(f"{path} is {named.get(stat.S_IFMT(kind), 'a device')}, not a file")
    try:
        os.close(os.open(path, os.O_RDONLY))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error


def check_readable(source: Path, subfolder: str | None = None) -> None:
    """Raise `CheckpointError` for a folder whose files may not be listed or looked at: they would seem not to be there.

    Says nothing of files, and of a subfolder that is not there.
    """
    for folder in dict.fromkeys((source, source / (subfolder or ""))):
        if folder.is_dir():
            try:
                os.scandir(folder).close()
                os.stat(os.path.join(folder, os.curdir))
            except OSError as error:
                raise CheckpointError(f"cannot read the folder {folder}: {error.strerror}") from error


@contextmanager
def opened(file: str | Path) -> Iterator[Any]:
    """A safetensors file, as `safe_open` gives it. Raises `CheckpointError`, naming it, whatever is wrong with it."""
    check_plain_file(file)
    try:
        with safe_open(file, framework="pt") as handle:
            yield handle
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror or error}") from error
    except SafetensorError as error:
        if any("\udc80" <= character <= "\udcff" for character in str(file)):
            raise CheckpointError(
                f"{file} has a path that is not UTF-8, which safetensors cannot open: rename the file or its folder"
            ) from error
        raise CheckpointError(
            f"{file} ({Path(file).stat().st_size} bytes) is no readable safetensors file: {error}. {_what_it_is(file)}"
        ) from error


def check_header(file: str | Path) -> None:
    """Raise `CheckpointError` if the header of a sound safetensors file names a tensor twice: readers differ then."""
    with open(file, "rb") as handle:
        header = handle.read(int.from_bytes(handle.read(8), "little"))
    try:
        json.loads(header, object_pairs_hook=_without_duplicates)
    except ValueError as error:
        raise CheckpointError(f"{file} has a header that is not to be trusted: {error}") from error


def in_two_files(name: str, first: str | Path, second: str | Path) -> CheckpointError:
    """The error for a tensor that two files of a checkpoint hold: which of them is meant, nobody can tell."""
    return CheckpointError(f"{name} is in two files, {first} and {second}: remove one")


def _what_it_is(path: str | Path) -> str:
    """What a file that is no safetensors seems to be, and the way out, as a sentence without its point."""
    with Path(path).open("rb") as file:
        start = file.read(LOOKED_AT)
    if instead := placeholder(start, "file"):
        return f"It is {instead}"
    if start.startswith(b"PK\x03\x04"):
        return "It is a zip archive, as torch.save writes: give it a name that ends in .pt"
    if start.startswith((b"\x80\x02", b"\x80\x04")):
        return "It is a pickle: give it a name that ends in .pt"
    if start.startswith(b"\x1f\x8b"):
        return "It is compressed by gzip: unpack it first"
    return "It is truncated or damaged; download or make it again"


def check_weight_files(folder: Path, variant: str | None = None) -> None:
    """Look at the weights of a folder as transformers will find them, and at the index if they are in several files.

    Raises `CheckpointError` as `check_plain_file`, for a folder without weights, and for an index that is none
    or that points elsewhere.
    """
    for name in _WEIGHTS:
        path = folder / _with_variant(name, variant)
        if os.path.lexists(path):
            check_plain_file(path)
            if path.suffix == ".json":
                for name in check_index(path):
                    _check_inside(path, name)
            return
    found = sorted(path.name for path in folder.iterdir() if path.suffix in SINGLE_FILES)
    hint = f"; it holds {first_few(found)}: pass the path of the file that is meant" if found else ""
    raise CheckpointError(
        f"cannot load {str(folder)!r}: there is no file named {_with_variant(_WEIGHTS[0], variant)}{hint}"
    )


def _with_variant(name: str, variant: str | None) -> str:
    if not variant:
        return name
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}.{variant}{dot}{suffix}"


def check_index(index: Path) -> list[str]:
    """The files that an index names, in order. Raises `CheckpointError` if it is no index or leaves its folder."""
    content = read_json(index)
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(file, str) for file in shards.values()) or not shards:
        raise CheckpointError(f"{index} has no weight_map from tensor to file: download or make the checkpoint again")
    if not isinstance(content.get("metadata"), dict):
        raise CheckpointError(f"{index} has no metadata: download or make the checkpoint again")
    names = sorted(set(shards.values()))
    for name in names:
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise CheckpointError(f"{index} names {name!r:.120}, which is no file of its folder: that is not read")
    return names


def _check_inside(index: Path, name: str) -> None:
    """A shard is a file of the index's own folder; in the Hub's cache that is a link to a blob beside the snapshots."""
    path = index.parent / name
    check_plain_file(path)
    home = index.parent.resolve()
    target = path.resolve()
    cached = [parent.parent for parent in (home, *home.parents) if parent.parent.name == "snapshots"]
    blobs = [snapshots.parent / "blobs" for snapshots in cached]
    if not any(target.is_relative_to(allowed) for allowed in (home, *blobs)):
        raise CheckpointError(
            f"{path} is a link out of its folder, to {target}: put the file itself there, or pass the folder it is in"
        )


def read_json(path: Path) -> Any:
    """What a small JSON file holds. Raises `CheckpointError` if it is unreadable, no JSON, too long or too deep."""
    check_plain_file(path)
    where = f"the {path.name} in {str(path.parent)!r}"
    if (size := path.stat().st_size) > _MOST_JSON:
        raise CheckpointError(f"cannot read {where}: it has {size} bytes, and none needs more than {_MOST_JSON}")
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_without_duplicates)
        deep = too_deep(content)
    except RecursionError:
        deep = True
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, an integer of thousands of digits
        with path.open("rb") as file:
            instead = placeholder(file.read(LOOKED_AT), "file")
        found = f"it is {instead}" if instead else f"it is not a valid JSON file: {error}"
        raise CheckpointError(f"cannot read {where}: {found}") from error
    if deep:
        raise CheckpointError(f"cannot read {where}: it is nested too deep for a description of a checkpoint")
    return content


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of which every reader sees the same: where a key is there twice, some take the first, some the last."""
    table = dict(pairs)
    if len(table) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {shown(twice)} is in one object twice")
    return table


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
