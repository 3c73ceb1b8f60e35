"""Exports as a single file, for pages that offer a download."""

import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

from vggt_int8.disk import naming
from vggt_int8.export.write import ExportOptions, write_scene
from vggt_int8.scene import Scene


def write_bundle(
    folder: Path, scenes: Mapping[str, Scene], format: str, options: Mapping[str, ExportOptions] | ExportOptions
) -> Path:
    """Write one format of one or several scenes into a new `folder` -> the single file there that contains all of it.

    scenes: by name; with several, each has a folder of its name inside.
    options: for all, or for each by its name.

    A format that is one file is written as it is, others as a .zip. Only some frames of scenes on disk are in memory,
    see `release_pages` of `write_scene`. Raises what `write_scene` raises, and then leaves no folder.
    """
    folder.mkdir()
    try:
        with naming(folder / format):
            return _write(folder, scenes, format, options)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # a disk that is full would stay so
        raise


def _write(
    folder: Path, scenes: Mapping[str, Scene], format: str, options: Mapping[str, ExportOptions] | ExportOptions
) -> Path:
    parts = folder / "parts"
    for name, scene in scenes.items():
        place = parts if len(scenes) == 1 else parts / name
        place.mkdir(parents=True)
        chosen = options if isinstance(options, ExportOptions) else options[name]
        write_scene(place, scene, (format,), chosen, release_pages=True)
    files = sorted(path for path in parts.rglob("*") if path.is_file())
    exports = [path for path in files if path.name != "cameras.json"]
    if len(exports) == 1:
        return exports[0]
    archive = folder / f"{format}.zip"
    with zipfile.ZipFile(archive, "x", zipfile.ZIP_STORED) as file:  # pictures and numbers hardly get smaller
        for path in files:
            file.write(path, path.relative_to(parts))
            path.unlink()
    return archive
