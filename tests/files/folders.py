"""Folders as the tests fill them and look at them."""

from pathlib import Path

from vggt_int8.files import staged_folder

ENTRIES = ("data", "a.json")  # a.json is the last to come
OURS = {"a.json", "data/old.npy", "data/new.npy"}


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def fill(out: Path, *files: str, overwrite: bool | None = False, error: BaseException | None = None) -> None:
    with staged_folder(out, entries=ENTRIES, overwrite=overwrite, owned=lambda _: OURS) as folder:
        for name in files:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(f"new {name}")
        if error is not None:
            raise error


def contents(folder: Path) -> dict[str, str]:
    """What is not hidden, by name."""
    names = (name for name in listing(folder) if not any(part.startswith(".") for part in Path(name).parts))
    return {name: (folder / name).read_text() for name in names}
