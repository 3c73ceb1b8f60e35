"""`vggt-int8 view`: saved reconstructions in a browser, one or several beside each other."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from vggt_int8.cli import console, options

if TYPE_CHECKING:
    from vggt_int8.export.points import PointSource

Folders = Annotated[
    list[Path],
    typer.Argument(
        help="Folders that `vggt-int8 run` wrote; with several the others are compared with the first.",
        show_default=False,
    ),
]
Host = Annotated[
    str, typer.Option(help="Who can reach the page: this machine alone by default, the network with 0.0.0.0.")
]


def view(
    folders: Folders,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes any that is free.", **options.between(0, 65535))] = 8080,
    points: Annotated[
        str | None,
        typer.Option(
            help="Points from depth and cameras, or from the point head (world_points); by default depth if there is.",
            **options.choice("source of points", *options.POINTS),
        ),
    ] = None,
    color: Annotated[
        str, typer.Option(help="Colour to begin with.", **options.choice("colour", *options.VIEW_COLORS))
    ] = "image",
    side_by_side: Annotated[bool, typer.Option("--side-by-side", help="Instead of one over the other.")] = False,
    confidence_percentile: Annotated[
        float, typer.Option(help="Leave out the least confident points to begin with.", **options.between(0, 99.5))
    ] = 25.0,
    max_points: Annotated[
        int, typer.Option(help="Points of each that are sent to the browser.", **options.between(1))
    ] = 1_000_000,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in this machine's browser.")] = False,
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
        if as_json:
            names = [{"folder": shown.folder, "label": shown.label} for shown in viewer.reconstructions]
            console.document("view", {"url": viewer.url, "reconstructions": names})
        else:
            console.say(viewer.url)
        console.note("Ctrl-C ends it.")
        if open_browser:
            import webbrowser

            webbrowser.open(viewer.url)
        viewer.wait()
