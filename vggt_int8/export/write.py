"""`write_scene`: one reconstruction in any number of formats, with a summary of what was written and what was not.

Formats are written concurrently, one frame at a time, so a scene on disk only needs memory for some frames.
"""

import warnings
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, get_args

from vggt_int8.export import colmap, glb, rerun_file
from vggt_int8.export.cameras import cameras_document
from vggt_int8.export.cautions import cautions
from vggt_int8.export.frames import frame_pool
from vggt_int8.export.maps import write_maps
from vggt_int8.export.naming import image_names
from vggt_int8.export.npz import write_predictions
from vggt_int8.export.originals import SCALES, Placing, place_images, relative_path
from vggt_int8.export.ply import write_ply
from vggt_int8.export.points import PointOptions, select_points
from vggt_int8.export.selection import Selection
from vggt_int8.export.tracks import write_tracks
from vggt_int8.export.transforms import POINTS_FILE, transforms_document
from vggt_int8.files import write_json
from vggt_int8.listing import first_few
from vggt_int8.scene.saved import FOLDER, save_scene
from vggt_int8.scene.scene import Scene

# What each format writes at the top of the folder.
ENTRIES: dict[str, tuple[str, ...]] = {
    "cameras": ("cameras.json",),
    "depth": ("depth", "confidence", "sheet.jpg"),
    "ply": ("points.ply",),
    "glb": ("scene.glb",),
    "colmap": ("sparse",),
    "transforms": ("transforms.json", POINTS_FILE),
    "npz": ("predictions.npz",),
    "tracks": ("tracks", "tracks.csv"),
    "rrd": ("scene.rrd",),
}
IMAGE_ENTRIES = ("images", *(f"images_{scale}" for scale in SCALES))
FORMATS = tuple(name for name in ENTRIES if name != "cameras")  # to choose from; cameras.json goes with every run
DEFAULT_FORMATS = ("ply", "depth")
SCENE_ENTRIES = (*(entry for entries in ENTRIES.values() for entry in entries), *IMAGE_ENTRIES, FOLDER, "report.json")
_NEEDS_CAMERAS = ("colmap", "transforms")


@dataclass(frozen=True)
class ExportOptions:
    """How the formats are written.

    points: which points.
    normals: also in points.ply.
    shared_camera: one camera in `sparse`.
    images: the original images beside the exports, copied or linked.
    image_scales: and smaller ones, in `images_N`.
    folder: the final location of the results, if they are written elsewhere.
    """

    points: PointOptions = field(default_factory=PointOptions)
    normals: bool = False
    shared_camera: bool = False
    images: Placing | None = None
    image_scales: tuple[int, ...] = ()
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.images is not None and self.images not in get_args(Placing):
            raise ValueError(f"images is {self.images!r}; it must be {' or '.join(get_args(Placing))}, or None")
        if wrong := [scale for scale in self.image_scales if scale not in SCALES]:
            raise ValueError(f"image_scales has {wrong[0]!r}; choose from {', '.join(map(str, SCALES))}")
        if self.image_scales and self.images is None:
            raise ValueError("image_scales are smaller copies of the images: copy or link these as well")


def check_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """Formats to write, each once. Raises ValueError for an unknown one, or none."""
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ValueError(f"there is no format {unknown[0]!r}: choose from {', '.join(FORMATS)}")
    if not formats:
        raise ValueError(f"no format to write: choose from {', '.join(FORMATS)}")
    return tuple(dict.fromkeys(formats))


def entries_of(formats: Collection[str], options: ExportOptions) -> tuple[str, ...]:
    """What these write at the top of the folder."""
    images = ("images",) if options.images else ()
    scales = tuple(f"images_{scale}" for scale in options.image_scales)
    return (*(entry for name in ENTRIES if name in formats for entry in ENTRIES[name]), *images, *scales)


def format_of(file: str) -> str | None:
    """The format that a file (relative, with `/`) belongs to; None for the report and what is no export."""
    top = file.split("/")[0]
    if top in IMAGE_ENTRIES:
        return "images"
    return "scene" if top == FOLDER else next((name for name, entries in ENTRIES.items() if top in entries), None)


def write_scene(
    folder: Path,
    scene: Scene,
    formats: Sequence[str] = DEFAULT_FORMATS,
    options: ExportOptions | None = None,
    *,
    cameras: bool = True,
    save: bool = False,
    release_pages: bool = False,
    on_frame: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write cameras.json and `formats` into `folder`, in which none of their names exists; see `staged_folder`.

    cameras: False leaves cameras.json out.
    save: also save the scene itself, for `load_scene`.
    release_pages: for a scene on disk whose maps were not changed in place, keep only some frames in memory (see
        `Scene.release_pages`).
    on_frame: called with (frames done, frames of all formats), for a progress bar.

    Returns a JSON-ready summary: an entry per output, None if the head that it needs did not run. Warns about pitfalls
    of programs that read these formats. Raises ValueError for formats that this scene cannot have.
    """
    options = options or ExportOptions()
    formats = check_formats(formats)
    if scene.extrinsic is None and (without := [name for name in _NEEDS_CAMERAS if name in formats]):
        raise ValueError(f"format {without[0]} needs cameras, and the camera head did not run")
    if "rrd" in formats:
        rerun_file.check_installed()
    if "tracks" in formats and scene.tracks is None:
        raise ValueError("format tracks needs points that were tracked: run again with --tracks")
    ticks = _Ticks(len(scene), [*formats, *(["images"] if options.images else [])], on_frame)
    summary: dict[str, Any] = {}
    release = scene.release_pages if release_pages else None
    with frame_pool(release) as pool, ThreadPoolExecutor(max_workers=len(ENTRIES) + 2) as writers:
        work = _Work(folder, scene, options, pool, ticks)
        jobs = {name: writers.submit(getattr(work, name)) for name in [*(["cameras"] if cameras else []), *formats]}
        if options.images:
            jobs["images"] = writers.submit(work.images)
        if save:
            jobs["scene"] = writers.submit(work.scene_itself)
        try:
            finished, _ = wait(jobs.values(), return_when=FIRST_EXCEPTION)  # all, if nothing goes wrong
            for job in jobs.values():
                if job in finished:
                    summary |= job.result()
        except BaseException:
            for job in jobs.values():
                job.cancel()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for warning in cautions(scene, formats, placed=options.images is not None, model=work.model):
        warnings.warn(warning, stacklevel=2)
    return summary


class _Work:
    """One method per format; each returns its part of the summary."""

    def __init__(
        self,
        folder: Path,
        scene: Scene,
        options: ExportOptions,
        pool: ThreadPoolExecutor,
        ticks: "_Ticks",
    ) -> None:
        self.folder, self.scene, self.options = folder, scene, options
        self.pool, self.tick = pool, ticks.tick
        self.model: colmap.ColmapModel | None = None
        self._points: dict[int | None, Selection | None] = {}
        self._choosing = Lock()

    def cameras(self) -> dict[str, Any]:
        document = cameras_document(self.scene)
        if document is not None:
            write_json(self.folder / "cameras.json", document)
        return {"cameras": None if document is None else {"images": len(self.scene)}}

    def depth(self) -> dict[str, Any]:
        return write_maps(self.folder, self.scene, self.pool, self.tick)

    def ply(self) -> dict[str, Any]:
        selection = self._at_most(None)
        if selection is None:
            return {"points": None}
        write_ply(self.folder / "points.ply", selection, self.pool, normals=self.options.normals, on_frame=self.tick)
        return {"points": selection.counts}

    def glb(self) -> dict[str, Any]:
        selection = self._at_most(glb.POINTS)
        if selection is None:
            return {"glb": None}
        return {"glb": glb.write_glb(self.folder / "scene.glb", selection, self.pool)}

    def colmap(self) -> dict[str, Any]:
        selection = self._at_most(colmap.POINTS)
        if selection is None:
            raise ValueError("format colmap needs points, and neither the depth nor the point head ran")
        written = colmap.colmap_model(self.scene, selection, self.pool, shared=self.options.shared_camera)
        self.model = written.model
        return {"colmap": colmap.write_colmap(self.folder, written, self.pool)}

    def transforms(self) -> dict[str, Any]:
        selection = self._at_most(colmap.POINTS)
        points_file = None if selection is None else POINTS_FILE
        document = transforms_document(self.scene, self._image_paths(), points_file)
        if selection is not None:
            write_ply(self.folder / POINTS_FILE, selection, self.pool, confidence=False)
        write_json(self.folder / "transforms.json", document)
        return {"transforms": {"frames": len(self.scene), "points": 0 if selection is None else selection.kept}}

    def npz(self) -> dict[str, Any]:
        arrays = write_predictions(self.folder / "predictions.npz", self.scene, self.pool, self.tick)
        return {"npz": {"arrays": arrays}}

    def tracks(self) -> dict[str, Any]:
        return {"tracks": write_tracks(self.folder, self.scene, self.pool, self.tick)}

    def rrd(self) -> dict[str, Any]:
        selection = self._at_most(glb.POINTS)
        cloud = None if selection is None else selection.cloud(self.pool)
        return {"rrd": rerun_file.write_rrd(self.folder / "scene.rrd", self.scene, cloud, self.pool, self.tick)}

    def images(self) -> dict[str, Any]:
        assert self.options.images is not None
        scales = self.options.image_scales
        return {"images": place_images(self.folder, self.scene, self.options.images, self.pool, scales, self.tick)}

    def scene_itself(self) -> dict[str, Any]:
        save_scene(self.folder / FOLDER, self.scene)
        return {"scene": {"images": len(self.scene)}}

    def _at_most(self, budget: int | None) -> Selection | None:
        """The points of formats with this budget; None for a scene without any. Made once for all that ask."""
        points = self.options.points
        most = points.max_points or budget
        with self._choosing:
            if None not in self._points:
                self._points[None] = select_points(self.scene, points, self.pool)
            everything = self._points[None]
            if most not in self._points:
                chosen = None if everything is None else everything.at_most(most, self.pool, points.seed)
                self._points[most] = chosen
            return self._points[most]

    def _image_paths(self) -> list[str]:
        """From the folder of the results to each image."""
        names = image_names(self.scene)
        if self.options.images:
            return [f"images/{name}" for name in names]
        if homeless := [name for name, file in zip(names, self.scene.files, strict=True) if file is None]:
            raise ValueError(
                f"transforms.json names the files of images, and {len(homeless)} have none: {first_few(homeless)}"
            )
        place = self.options.folder or self.folder
        return [relative_path(file, place) for file in self.scene.files if file is not None]


class _Ticks:
    """Counts frames of several formats, from several threads."""

    def __init__(self, frames: int, formats: Sequence[str], report: Callable[[int, int], None] | None) -> None:
        counted = [name for name in formats if name in ("depth", "ply", "npz", "tracks", "rrd", "images")]
        self.total, self.done, self.report, self.lock = frames * len(counted), 0, report, Lock()

    def tick(self) -> None:
        with self.lock:
            self.done += 1
            if self.report is not None:
                self.report(self.done, self.total)
