"""Whole folders or none: filled under a hidden name, then renamed, or exchanged with an existing one, file by file."""

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path

from vggt_int8.disk import check_place, naming
from vggt_int8.files.exchange import exchange, foreign_below, not_ours
from vggt_int8.files.hidden import exchanging, left_by, make_locked, real_path, remove, sweep, sweep_below
from vggt_int8.interrupts import uninterrupted


@contextmanager
def staged_folder(
    out: str | PathLike[str],
    *,
    entries: Collection[str] | Callable[[], Collection[str]],
    overwrite: bool | None = False,
    owned: Callable[[Path], Collection[str]] | None = None,
    needed: float = 0,
) -> Iterator[Path]:
    """Yields an empty folder to write into. On success its content becomes `out`; on any error nothing remains.

    entries: the names that this kind of output may have at its top level. The last of them marks the output as
        complete: it is removed first and added last. A function, if they depend on what exists, is called while no
        other exchange is running.
    overwrite: True replaces these in an existing folder, including old ones that the new run lacks, and leaves all
        other files alone. None: the caller offers no overwriting, so the message does not either.
    owned: of an existing folder, the files (relative, with `/`) that may be replaced, since this program wrote them,
        and links as "name -> target".
    needed: estimate of the bytes to be written.

    A kill leaves the old content or the new one; or, between two renames, one without its last entry, which the next
    call for this `out` restores to the old content.

    Raises FileExistsError if `out` is a file, or is not empty and `overwrite` is False, or has a file that is not owned
    in one of the entries; other OSErrors that name it if it cannot be written. These checks come first, so enter this
    before any long computation.
    """
    out = Path(out).expanduser()
    check_place(out)
    sweep(out)
    check_place(out, needed)  # once what a kill has left is gone
    known = entries if callable(entries) else lambda: entries
    _check_replaceable(out, known(), overwrite, owned)
    with staging_folder(out) as staging:
        new = staging / "new"
        new.mkdir()
        with naming(out, new):
            yield new
        unexpected = {path.name for path in new.iterdir()} - set(known())
        if unexpected:
            raise ValueError(f"{sorted(unexpected)} must be listed in entries {sorted(known())}")
        # An existing folder may be a mount point or someone's working directory: it is filled, never replaced.
        if staging.parent == real_path(out):
            with exchanging(staging.parent):
                sweep_below(staging.parent, left_by(staging.parent))  # another may have been killed meanwhile
                _check_replaceable(out, known(), overwrite, owned, but=staging)  # or have filled it
                exchange(staging, list(known()), set(owned(out)) if owned is not None else set())
            return
        try:
            new.rename(out)
        except OSError as error:
            raise FileExistsError(f"output {out} was made by something else meanwhile: {error.strerror}") from error


@contextmanager
def staging_folder(target: str | PathLike[str]) -> Iterator[Path]:
    """An empty hidden folder on the file system of `target`, locked while the block runs and gone after it.

    Inside `target` if that is a folder, else beside it, in parents that are made and, after an error, removed again.
    Sweeps first. What is to stay is renamed out of it by the caller.
    """
    target = real_path(target)
    sweep(target)
    parent = target if target.is_dir() else target.parent
    made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    held: tuple[Path, int] | None = None
    try:
        with uninterrupted():
            parent.mkdir(parents=True, exist_ok=True)
            held = make_locked(parent, target.name)
        yield held[0]
    finally:
        with uninterrupted():
            if held is not None:
                remove(held[0])
                os.close(held[1])
            for folder in made:
                with suppress(OSError):  # it holds something, so it stays
                    folder.rmdir()


@contextmanager
def whole_file(path: str | PathLike[str]) -> Iterator[Path]:
    """Give a path to write a file at, for programs that write files themselves; on success it becomes `path`.

    After an error, what was there before is whole.
    """
    with staging_folder(path) as staging:
        new = staging / Path(path).name
        with naming(path, new):
            yield new
        new.replace(path)


def _check_replaceable(
    out: Path,
    entries: Collection[str],
    overwrite: bool | None,
    owned: Callable[[Path], Collection[str]] | None,
    but: Path | None = None,
) -> None:
    """Raise FileExistsError unless `staged_folder` may put `entries` into `out`, whose entry `but` does not count."""
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"output {out} is a file, a folder is needed: choose another name")
    if not out.exists() or not (found := {path.name for path in out.iterdir()} - {but and but.name}):
        return
    if not overwrite:
        way_out = "" if overwrite is None else ", or overwrite it (--overwrite, overwrite=True)"
        raise FileExistsError(f"output folder {out} is not empty: choose another one{way_out}")
    foreign = foreign_below(out, sorted(found & set(entries)), set() if owned is None else set(owned(out)))
    if foreign:
        raise not_ours(out, foreign)
