"""`vggt-int8 export`: write further formats from the output folder of a run or of a scene of a batch, without the
model.
"""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggt_int8.cli import console, formats, options
from vggt_int8.disk import check_place
from vggt_int8.files import sweep

if TYPE_CHECKING:
    from vggt_int8.export import Scene


def export(
    folder: Annotated[
        Path, typer.Argument(help="Output folder of `vggt-int8 run`, or of a scene of a batch.", show_default=False)
    ],
    format: formats.Formats,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Output folder; by default the folder of the run."),
    ] = None,
    points: formats.Points = None,
    confidence_percentile: formats.ConfidencePercentile = 25.0,
    min_confidence: formats.MinConfidence = None,
    edges: formats.Edges = None,
    voxel: formats.Voxel = None,
    max_points: formats.MaxPoints = None,
    masks: formats.Masks = None,
    normals: formats.Normals = False,
    shared_camera: formats.SharedCamera = False,
    copy_images: formats.CopyImages = False,
    link_images: formats.LinkImages = False,
    image_scales: formats.ImageScales = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace formats of an earlier run or export in the folder.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Export a reconstruction saved by `run` to further formats."""
    wanted = formats.exports(
        format, image_scales, copy_images, link_images, masks, points=points,
        confidence_percentile=confidence_percentile, min_confidence=min_confidence, edges=edges, voxel=voxel,
        max_points=max_points, normals=normals, shared_camera=shared_camera,
    )  # fmt: skip
    target = folder if out is None else out
    check_place(target.expanduser())
    if out is None:
        sweep(folder)  # before looking for what is there: a kill may have left an exchange half done
    from vggt_int8.export import load_scene

    scene = load_scene(folder)
    if out is None:
        report = _into_run(folder, scene, wanted, overwrite)
    else:
        report = _elsewhere(out, scene, wanted, overwrite)
    if as_json:
        console.document("export", {"out": target, "report": report})
        return
    for entry in report["written"]:
        if "/" not in entry["file"] and entry["format"] in wanted.formats:
            console.say(f"{target / entry['file']}  {console.megabytes(entry['bytes'])}")
    console.say(f"{', '.join(wanted.formats)} of {console.count_images(len(scene))} -> {target}")


def _into_run(folder: Path, scene: "Scene", wanted: formats.Exports, overwrite: bool) -> dict[str, Any]:
    """Add the formats to the folder of a run, or of a scene of a batch, and list them in its report."""
    from vggt_int8.export import owned_files, staged_folder
    from vggt_int8.export.owned import REPORT, extend_report
    from vggt_int8.export.write import entries_of, format_of

    folder = folder.expanduser()
    entries = (*entries_of(wanted.formats, wanted.options(folder)), REPORT)
    there = [entry for entry in entries[:-1] if (folder / entry).exists()]
    if there and not overwrite:
        raise FileExistsError(
            f"{folder / there[0]} is there already: replace it (--overwrite), or choose another --out"
        )
    owned = partial(owned_files, command=("run", "batch"))
    with staged_folder(folder, entries=entries, overwrite=True, owned=owned) as staged:
        before = json.loads((folder / REPORT).read_text(encoding="utf-8")) if (folder / REPORT).exists() else {}
        outputs = _write(staged, folder, scene, wanted)
        kept = [entry for entry in before.get("written", []) if entry["file"].split("/")[0] not in entries]
        document = {**before, "outputs": {**before.get("outputs", {}), **outputs}}
        document["exports"] = [*before.get("exports", []), wanted.settings()]
        return extend_report(staged, before.get("command", "run"), document, kept, format_of)


def _elsewhere(out: Path, scene: "Scene", wanted: formats.Exports, overwrite: bool) -> dict[str, Any]:
    from vggt_int8.export import SCENE_ENTRIES, owned_files, staged_folder, write_report
    from vggt_int8.export.write import format_of

    owned = partial(owned_files, command="export")
    with staged_folder(out, entries=SCENE_ENTRIES, overwrite=overwrite, owned=owned) as staged:
        outputs = _write(staged, out, scene, wanted)
        return write_report(staged, "export", {"outputs": outputs, "exports": [wanted.settings()]}, format_of)


def _write(staged: Path, place: Path, scene: "Scene", wanted: formats.Exports) -> dict[str, Any]:
    from vggt_int8.export import write_scene

    with console.step(f"Writing {place}") as progress:
        return write_scene(
            staged, scene, wanted.formats, wanted.options(place), cameras=False, release_pages=True, on_frame=progress
        )
