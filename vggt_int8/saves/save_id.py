"""The id that ties the files of one save together, and the digests of their contents.

An id is stored in `config.json` (`"save": {"id": …, "sha256": {file: digest}}`), in the header of every safetensors
file and in the index of shards, and is compared whenever a checkpoint is loaded: files of two saves are never loaded as
one model. It is computed from the contents, so that saving the same model again writes the same bytes. Checkpoints
without an id (format 1, other people's) are not compared. Digests are compared on request (`verify=True`), which reads
every byte.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from vggt_int8.files import sync
from vggt_int8.listing import first_few
from vggt_int8.saves.errors import CheckpointError
from vggt_int8.saves.pickles import load_pickle
from vggt_int8.saves.plain_files import check_header, in_two_files, opened, read_json

KEY = "save_id"
NO_ID = "0" * 32  # its place in a header until the id is known; digests are of files that hold this
_ID = rf'"{KEY}":"([0-9a-f]{{32}})"'.encode()
# safetensors writes these two in either order.
_METADATA = re.compile(rb'"__metadata__":\{(?:"format":"pt",' + _ID + rb"|" + _ID + rb',"format":"pt")\}')
_CHUNK = 1 << 20
# Of the call of `from_pretrained` that is at work: transformers hands no argument through to where files are known.
_VERIFY: ContextVar[bool] = ContextVar("verify", default=False)


def stamp(folder: Path) -> None:
    """Write id and digests into the files of a finished save, whose safetensors headers hold `NO_ID`.

    Reads every tensor file once, and leaves all of it on the disk rather than in its cache.
    """
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        _write_id(file, NO_ID)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("save", None)  # of the checkpoint that the model was loaded from
    digests = {file.name: digest(file) for file in files}
    save_id = _id_of(config, digests)
    for file in files:
        _write_id(file, save_id)
    config["save"] = {"id": save_id, "sha256": digests}
    _write_json(folder / "config.json", config)
    if (index := folder / SAFE_WEIGHTS_INDEX_NAME).exists():
        listed = json.loads(index.read_text(encoding="utf-8"))
        listed["metadata"][KEY] = save_id
        _write_json(index, listed)
    for path in folder.iterdir():
        sync(path)


def _id_of(config: dict[str, Any], digests: dict[str, str]) -> str:
    """The id of a save; config: without what it says of the save."""
    return hashlib.sha256(json.dumps([config, digests], sort_keys=True).encode()).hexdigest()[: len(NO_ID)]


def digest(file: str | Path) -> str:
    """sha256 of a safetensors file with the id in its header as `NO_ID`: the id is made from this."""
    with open(file, "rb") as handle:
        length = handle.read(8)
        header = handle.read(int.from_bytes(length, "little"))
        total = hashlib.sha256(length + re.sub(_ID, f'"{KEY}":"{NO_ID}"'.encode(), header, count=1))
        buffer = bytearray(_CHUNK)
        while count := handle.readinto(buffer):
            total.update(memoryview(buffer)[:count])
    return total.hexdigest()


@contextmanager
def verifying(verify: bool) -> Iterator[None]:
    """While the block runs, `check_loaded` compares digests as well."""
    token = _VERIFY.set(verify)
    try:
        yield
    finally:
        _VERIFY.reset(token)


def check_loaded(files: Sequence[str | Path] | None) -> None:
    """`check_one_save` of the files that transformers is about to load, if it loads any, and that no two of them hold
    a tensor of one name: transformers takes the last. Raises `CheckpointError`.
    """
    if files:
        check_one_save(files, verify=_VERIFY.get())
        _check_names(files)


def _check_names(files: Sequence[str | Path]) -> None:
    seen: dict[str, str | Path] = {}
    for file in files if len(files) > 1 else ():
        for name in _names(file):
            if name in seen:
                raise in_two_files(name, seen[name], file)
            seen[name] = file


def _names(file: str | Path) -> list[str]:
    if not str(file).endswith(".safetensors"):
        return list(load_pickle(str(file)))
    with opened(file) as handle:
        return list(handle.keys())


def check_one_save(files: Sequence[str | Path], *, verify: bool = False) -> None:
    """Raise `CheckpointError` unless these tensor files, their index and the config.json beside them are of one save.

    verify: compare the contents with their digests as well; a checkpoint that has none is refused then.
    """
    folder = Path(files[0]).parent
    ids = {Path(file).name: _stored_id(file) for file in files}
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file() and SAFE_WEIGHTS_NAME not in ids:
        listed = read_json(index)
        metadata = listed.get("metadata") if isinstance(listed, dict) else None
        ids[index.name] = metadata.get(KEY) if isinstance(metadata, dict) else None
    save = described_save(folder)
    if (folder / "config.json").is_file():
        ids["config.json"] = None if save is None else save["id"]
    if len(set(ids.values())) > 1:
        own = all(save_id is None for name, save_id in ids.items() if name != "config.json")
        way_out = '. If the tensors are of your own making, take "save" out of config.json' if own else ""
        raise CheckpointError(
            f"{folder} holds files of different saves ({_grouped(ids)}): some were copied or changed one by one. "
            f"Save, copy or download all of it again{way_out}"
        )
    if verify:
        _check_digests(files, save, folder)


def described_save(folder: Path) -> dict[str, Any] | None:
    """What the config.json of a folder says of its save; None if it says nothing. Raises `CheckpointError`."""
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else None
    save = config.get("save") if isinstance(config, dict) else None
    if save is None:
        return None
    digests = save.get("sha256") if isinstance(save, dict) else None
    if not isinstance(digests, dict) or not isinstance(save.get("id"), str) or save.keys() != {"id", "sha256"}:
        raise CheckpointError(f"{path}: its save is no id with sha256 digests: {str(save)!r:.120}")
    return save


def _check_digests(files: Sequence[str | Path], save: dict[str, Any] | None, folder: Path) -> None:
    if save is None:
        raise CheckpointError(
            f"{folder} cannot be verified: its config.json holds no digests, since another tool or an older version "
            "wrote it. Load it without verify=True"
        )
    config = read_json(folder / "config.json")
    if _id_of({key: value for key, value in config.items() if key != "save"}, save["sha256"]) != save["id"]:
        raise CheckpointError(
            f"{folder / 'config.json'} has been changed or damaged since it was saved: its id is of another content. "
            "Download or make the checkpoint again, or load it without verify=True"
        )
    for file in files:
        expected = save["sha256"].get(Path(file).name)
        if expected is None:
            raise CheckpointError(f"{file} cannot be verified: the config.json beside it holds no digest of it")
        if (found := digest(file)) != expected:
            raise CheckpointError(
                f"{file} has been changed or damaged since it was saved: its sha256 is {found}, and {expected} was "
                "written. Download or make the checkpoint again"
            )


def _stored_id(file: str | Path) -> str | None:
    """The id in the header of a file, if it can have one. Raises `CheckpointError` for a header that is unsound."""
    if not str(file).endswith(".safetensors"):
        return None
    with opened(file) as handle:
        metadata = handle.metadata() or {}
    check_header(file)
    return metadata.get(KEY)


def _grouped(ids: dict[str, str | None]) -> str:
    """Files by id, in words, a few names each."""
    words = []
    for save_id in dict.fromkeys(ids.values()):
        names = [name for name, other in ids.items() if other == save_id]
        words.append(f"{first_few(names, 2)}: {'no id' if save_id is None else f'id {save_id!s:.32}'}")
    return "; ".join(words)


def _write_id(file: Path, save_id: str) -> None:
    """Replace the id in a header by another, its length unchanged, with the keys beside it in alphabetical order."""
    with file.open("r+b") as handle:
        header = handle.read(8 + int.from_bytes(handle.read(8), "little"))
        if (found := _METADATA.search(header)) is None:
            raise ValueError(f"{file} has no place for an id of its save in its header")
        handle.seek(8 + found.start())
        handle.write(f'"__metadata__":{{"format":"pt","{KEY}":"{save_id}"}}'.encode())


def _write_json(path: Path, content: Any) -> None:
    """As transformers writes them."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
