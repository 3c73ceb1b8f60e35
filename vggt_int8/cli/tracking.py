"""The options --tracks and --refine of `run`, and of `batch` for each of its scenes."""

from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from vggt_int8.cli import options

if TYPE_CHECKING:
    import torch

    from vggt_int8.cli.formats import Exports
    from vggt_int8.export import PointOptions, Scene
    from vggt_int8.images import ImageTransform
    from vggt_int8.pretrained.int8_network import Int8Network

TrackCount = Annotated[
    int | None,
    typer.Option(
        "--tracks",
        help="Track this many points of the first image through all images; 256 for --format tracks and --refine.",
        **options.between(1),
    ),
]
Refine = Annotated[
    bool, typer.Option("--refine", help="Adjust cameras with COLMAP's bundle adjustment, from tracks if available.")
]


class Wanted(Protocol):
    """The values of a command's options."""

    @property
    def exports(self) -> "Exports": ...
    @property
    def tracks(self) -> int | None: ...
    @property
    def refine(self) -> bool: ...


def check_refine(refine: bool) -> None:
    """Raise ImportError, naming the package to install, for --refine without pycolmap."""
    if refine:
        from vggt_int8.export.refine import check_installed

        check_installed()


def track_count(network: "Int8Network", wanted: Wanted) -> int | None:
    """Number of points to track; None for none."""
    from vggt_int8.export.tracks import POINTS

    needed = "tracks" in wanted.exports.formats or (wanted.refine and "track" in network.present_heads)
    return wanted.tracks or (POINTS if needed else None)


def queries(network: "Int8Network", wanted: Wanted, first: "ImageTransform") -> "dict[str, torch.Tensor]":
    """The tracked points of the first image, [N, 2], as a keyword argument of the network, if there are any."""
    from vggt_int8.export.tracks import query_grid

    count = track_count(network, wanted)
    return {} if count is None else {"query_points": query_grid(first.content_mask(), count).to(network.device)}


def refined(scene: "Scene", points: "PointOptions") -> "tuple[Scene, dict[str, Any]]":
    """The scene with adjusted cameras, where these are better, and the result for the report."""
    from vggt_int8.export.refine import refine_scene

    found = refine_scene(scene, points)
    return found.scene, {"refine": found.summary}
