"""`vggt-int8 data eth3d`: download public scenes with known geometry, for `eval` and for calibration."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress, TaskID

from vggt_int8.cli import console, options
from vggt_int8.disk import check_place

if TYPE_CHECKING:
    from vggt_int8.data.eth3d import Archive

# Repeated here, as in `options`; a test compares the values.
ETH3D_SCENES = (
    *("courtyard", "delivery_area", "electro", "facade", "kicker", "meadow", "office", "pipes", "playground"),
    *("relief", "relief_2", "terrace", "terrains"),
)
ETH3D_PARTS = ("images", "depth", "masks", "scan")


def data_eth3d(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the scenes.")],
    scenes: Annotated[
        str,
        typer.Option(
            help=f"Scenes, separated by commas: {', '.join(ETH3D_SCENES)}; or all.",
            **options.list_option("scene", *ETH3D_SCENES, "all"),
        ),
    ] = "pipes",
    parts: Annotated[
        str,
        typer.Option(
            help=f"Parts of each scene, separated by commas: {', '.join(ETH3D_PARTS)}.",
            **options.list_option("part", *ETH3D_PARTS),
        ),
    ] = "images,depth,scan",
    site: Annotated[str | None, typer.Option(help="URL of a mirror of the archives.", show_default=False)] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the archives next to the scenes.")] = False,
    as_json: options.Json = False,
) -> None:
    """Download scenes of ETH3D (photographs, poses, depth, laser scans); what is there is not fetched again.

    Goes on where it was cut off. Needs py7zr: pip install 'vggt-int8\\[data]'.
    """
    from vggt_int8.data.archive import require
    from vggt_int8.data.eth3d import LICENCE, SITE, archives, fetch

    require()
    out = out.expanduser()
    check_place(out)
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"--out {out} is a file, a folder is needed")
    chosen = ETH3D_SCENES if "all" in _words(scenes) else _words(scenes)
    wanted = archives(chosen, _words(parts))
    console.note(f"ETH3D is under {LICENCE}")
    with _bars() as show:
        place = (site or SITE).rstrip("/")
        fetched = fetch(wanted, out, site=place, keep=keep, on_bytes=show, on_wait=_waiting, on_unpack=_unpacking)
    names = [archive.name for archive in fetched]
    if as_json:
        console.document("data eth3d", {"out": out, "scenes": list(chosen), "fetched": names})
        return
    there = len(wanted) - len(fetched)
    plural = "" if len(fetched) == 1 else "s"
    console.say(f"{len(fetched)} archive{plural} fetched into {out}, {there} there before")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _waiting(archive: "Archive", reason: str, seconds: float) -> None:
    console.note(f"{archive.name}: {reason}; the next attempt in {seconds:g} s")


def _unpacking(archive: "Archive") -> None:
    console.note(f"unpacking {archive.name}")


@contextmanager
def _bars() -> "Iterator[_Show]":
    with console.download_bars() as progress:
        yield _Show(progress)


class _Show:
    """A progress bar for each archive."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, archive: "Archive", done: int, total: int) -> None:
        if archive.name not in self.tasks:
            self.tasks[archive.name] = self.progress.add_task(archive.name, total=total)
        self.progress.update(self.tasks[archive.name], completed=done, total=total)
