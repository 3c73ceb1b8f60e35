"""`vggt-int8 view`: view saved reconstructions in a browser, one or several side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from vggt_int8.cli import console, formats, options, pages

if TYPE_CHECKING:
    from vggt_int8.export.selection import PointSource

Folders = Annotated[
    list[Path],
    typer.Argument(
        help="Output folders of `vggt-int8 run`; all others are compared with the first.",
        show_default=False,
    ),
]


def view(
    folders: Folders,
    host: pages.Host = "127.0.0.1",
    port: pages.Port = 8080,
    points: formats.Points = None,
    color: Annotated[
        str, typer.Option(help="Initial colour.", **options.choice("colour", *options.VIEW_COLORS))
    ] = "image",
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="Show reconstructions side by side instead of overlaid.")
    ] = False,
    confidence_percentile: Annotated[
        float,
        typer.Option(
            help="Initial percentile of points to leave out, least confident first.", **options.between(0, 99.5)
        ),
    ] = 25.0,
    max_points: Annotated[
        int,
        typer.Option(help="Maximum number of points of each reconstruction sent to the browser.", **options.between(1)),
    ] = 1_000_000,
    open_browser: pages.OpenBrowser = False,
    as_json: options.Json = False,
) -> None:
    """Show what `run` saved in a browser, without the model and without a network, until Ctrl-C."""
    from vggt_int8.viewer import Settings, open_viewer

    settings = Settings(
        color=color,
        percentile=confidence_percentile,
        most_points=max_points,
        layout="side by side" if side_by_side else "overlaid",
    )
    with console.step("Reading points"):
        viewer = open_viewer(
            folders, host=host, port=port, points=cast("PointSource | None", points), settings=settings
        )
    with viewer:
        names = [{"folder": shown.folder, "label": shown.label} for shown in viewer.reconstructions]
        content = {"reconstructions": names}
        pages.serve(viewer, "view", content, end="Ctrl-C ends it.", open_browser=open_browser, as_json=as_json)
