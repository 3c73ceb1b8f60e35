"""`vggt-int8 scenes`: procedural scenes with exact ground truth, as files for `load_scene`."""

from pathlib import Path
from typing import Annotated

import typer

from vggt_int8.cli import console, options
from vggt_int8.disk import check_place


def scenes_bundle(
    to: Annotated[
        Path | None, typer.Option(help="Folder for the scenes' folders; by default the package's.", show_default=False)
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Write the scenes that ship with the package."""
    if to is not None:
        check_place(to)
    from vggt_int8.scenes.stored import BUNDLED_FOLDER, store_bundled

    folder = BUNDLED_FOLDER if to is None else to.expanduser()
    with console.step("Rendering"):
        written = [folder / name for name in store_bundled(folder)]
    if as_json:
        console.document("scenes bundle", {"scenes": written})
        return
    for path in written:
        console.say(f"wrote {path}")


def scenes_render(
    to: Annotated[Path, typer.Option("--to", help="Folder to write.")],
    split: Annotated[
        str, typer.Option(help=f"Split: {', '.join(options.SPLITS)}.", **options.choice("split", *options.SPLITS))
    ] = "free",
    index: Annotated[int, typer.Option(help="Which scene of the split.", **options.between(0))] = 0,
    views: Annotated[int, typer.Option(help="Number of images.", **options.between(1))] = 8,
    size: Annotated[
        tuple[int, int], typer.Option(help="Height and width, pixels.", metavar="H W", **options.each_between(1))
    ] = (112, 112),
    as_json: options.Json = False,
) -> None:
    """Write one scene: images, 16-bit depth, cameras."""
    from vggt_int8.scenes.stored import store_rendered

    with console.step("Rendering"):
        store_rendered(to, split, index, views, size)
    if as_json:
        facts = {"split": split, "index": index, "views": views, "size": size}
        console.document("scenes render", {"scenes": [to], **facts})
        return
    console.say(f"wrote {to}")
