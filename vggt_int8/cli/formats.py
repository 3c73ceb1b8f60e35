"""Export options, shared by `run`, `batch`, and `export`, which needs no model."""

from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from vggt_int8.cli import options

if TYPE_CHECKING:
    from vggt_int8.export import ExportOptions
    from vggt_int8.export.originals import Placing
    from vggt_int8.export.selection import PointSource

# Repeated here, since the modules that define them load PyTorch; a test compares the values.
FORMATS = ("depth", "ply", "glb", "colmap", "transforms", "npz", "tracks", "rrd")
SCALES = ("2", "4", "8")
NEED_CAMERAS = ("colmap", "transforms")
DEFAULT_FORMATS = "ply,depth"
# Minimum bytes written per pixel of the network's images, for checking the disk space in advance.
SCENE_BYTES = 11.0  # colours, depth, confidence
BYTES = {"depth": 8.0, "npz": 32.0}

Formats = Annotated[
    str,
    typer.Option(
        "--format", "-f", help=f"What to write: {', '.join(FORMATS)}.", **options.list_option("format", *FORMATS)
    ),
]
Points = Annotated[
    str | None,
    typer.Option(
        help="Points from depth and cameras, or from the point head (world_points); by default depth if available.",
        **options.choice("source of points", *options.POINTS),
    ),
]
ConfidencePercentile = Annotated[
    float,
    typer.Option(
        help="Leave out points whose confidence is below this percentile, 0 to 100.", **options.between(0, 100)
    ),
]
MinConfidence = Annotated[
    float | None,
    typer.Option(help="Leave out points whose confidence is below this number; it starts at 1.", **options.between(0)),
]
Edges = Annotated[
    float | None,
    typer.Option(
        help="Leave out points around which depth changes by more than this fraction, such as 0.05.",
        **options.between(0),
    ),
]
Voxel = Annotated[
    float | None,
    typer.Option(
        help="Keep the most confident point in each cube of this size, in the scene's unit.", **options.between(1e-12)
    ),
]
MaxPoints = Annotated[
    int | None,
    typer.Option(
        help="A random subset of at most this many points; by default all in ply, 1,000,000 in glb, 100,000 in colmap "
        "and transforms.",
        **options.between(1),
    ),
]
Masks = Annotated[
    Path | None,
    typer.Option(
        help="Folder with a mask for each image, with the same name: white is kept, black is left out.",
        show_default=False,
    ),
]
Normals = Annotated[bool, typer.Option("--normals", help="Write normals to points.ply.")]
SharedCamera = Annotated[
    bool, typer.Option("--shared-camera", help="One camera for all images in colmap, with the median focal length.")
]
CopyImages = Annotated[
    bool,
    typer.Option(
        "--copy-images",
        help="Copy the original images next to the exports; images with an EXIF orientation are written upright.",
    ),
]
LinkImages = Annotated[bool, typer.Option("--link-images", help="The same with links instead of copies.")]
ImageScales = Annotated[
    str | None,
    typer.Option(
        help="Also write smaller copies to images_N, for N of 2, 4 and 8.", **options.list_option("scale", *SCALES)
    ),
]


@dataclass(frozen=True)
class Exports:
    """The values of these options."""

    formats: tuple[str, ...]
    points: str | None
    confidence_percentile: float
    min_confidence: float | None
    edges: float | None
    voxel: float | None
    max_points: int | None
    masks: Path | None = None
    normals: bool = False
    shared_camera: bool = False
    images: str | None = None
    image_scales: tuple[int, ...] = ()

    def options(self, folder: Path) -> "ExportOptions":
        """Options for `write_scene`; `folder` is the output folder. Raises ValueError for contradictory options."""
        from vggt_int8.export import ExportOptions, PointOptions

        return ExportOptions(
            points=PointOptions(
                source=cast("PointSource | None", self.points),
                masks=self.masks,
                confidence_percentile=self.confidence_percentile,
                min_confidence=self.min_confidence,
                edges=self.edges,
                voxel=self.voxel,
                max_points=self.max_points,
            ),
            normals=self.normals,
            shared_camera=self.shared_camera,
            images=cast("Placing | None", self.images),
            image_scales=self.image_scales,
            folder=folder,
        )

    def settings(self) -> dict[str, Any]:
        """For report.json."""
        return {
            **asdict(self),
            "formats": list(self.formats),
            "masks": None if self.masks is None else str(self.masks),
            "image_scales": list(self.image_scales),
        }

    def bytes_per_pixel(self) -> float:
        """Minimum bytes written per pixel of the network's images."""
        return SCENE_BYTES + sum(BYTES.get(name, 0.0) for name in self.formats)


def exports(
    formats: str,
    image_scales: str | None = None,
    copy_images: bool = False,
    link_images: bool = False,
    masks: Path | None = None,
    **others: Any,
) -> Exports:
    """Convert the options to `Exports`. Raises ValueError for contradictory options."""
    if copy_images and link_images:
        raise ValueError("--copy-images and --link-images contradict each other: give one of them")
    if image_scales and not copy_images and not link_images:
        raise ValueError("--image-scales makes smaller copies of the images: give --copy-images or --link-images, too")
    if masks is not None and not masks.expanduser().is_dir():
        raise ValueError(f"--masks: {masks} is no folder")
    names = tuple(dict.fromkeys(name.strip() for name in formats.split(",")))
    if "rrd" in names and find_spec("rerun") is None:
        raise ValueError("--format rrd needs rerun, which is not installed: pip install 'vggt-int8[rerun]'")
    return Exports(
        formats=names,
        images="copy" if copy_images else "link" if link_images else None,
        image_scales=tuple(int(scale) for scale in image_scales.split(",")) if image_scales else (),
        masks=masks,
        **others,
    )
