"""Laser scans: PLY point files, and MeshLab projects with the pose of each scan."""

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from vggt_int8.plain_data import shown

Doubles = NDArray[np.float64]
_TYPES = {
    "char": "i1",
    "uchar": "u1",
    "short": "i2",
    "ushort": "u2",
    "int": "i4",
    "uint": "u4",
    "float": "f4",
    "int8": "i1",
    "uint8": "u1",
    "int16": "i2",
    "uint16": "u2",
    "int32": "i4",
    "uint32": "u4",
    "float32": "f4",
    "float64": "f8",
    "double": "f8",
}
_ORDER = {"binary_little_endian": "<", "binary_big_endian": ">"}
_FARTHEST = 1 << 60  # cubes from the origin; what lies beyond is one
_LONGEST_HEADER, _LARGEST_PROJECT = 1 << 16, 1 << 20


class ScanError(ValueError):
    """A scan that cannot be read. The message names the file."""


def read_ply(path: Path) -> NDArray[np.float32]:
    """Positions [N, 3] of the vertices, which must come first in the file. Raises `ScanError` and OSError."""
    header, start = _header(path)
    form = re.search(r"^format (\S+)", header, flags=re.MULTILINE)
    first = re.search(r"^element (\S+) (\d+)\s*\n((?:property [^\n]+\n)*)", header, flags=re.MULTILINE)
    if form is None or first is None or first[1] != "vertex":
        raise ScanError(f"{path} is no PLY file whose vertices come first")
    properties = [line.split()[1:] for line in first[3].splitlines()]
    if any(len(words) != 2 or words[0] not in _TYPES for words in properties):
        raise ScanError(f"{path}: properties of its vertices are {shown(first[3])}; single numbers are read")
    names = [words[1] for words in properties]
    if missing := {"x", "y", "z"} - set(names):
        raise ScanError(f"{path}: its vertices have no {', '.join(sorted(missing))}")
    count = int(first[2])
    if form[1] == "ascii":
        table = np.loadtxt(path, skiprows=header.count("\n"), max_rows=count, ndmin=2)
        if table.shape[0] != count or table.shape[1] < len(names):
            raise ScanError(f"{path} has {table.shape[0]} rows of {table.shape[1]} numbers, not {count} vertices")
        return table[:, [names.index(name) for name in "xyz"]].astype(np.float32)
    if form[1] not in _ORDER:
        raise ScanError(f"{path} has the format {shown(form[1])}")
    vertex = np.dtype([(name, _ORDER[form[1]] + _TYPES[kind]) for kind, name in properties])
    if path.stat().st_size < start + count * vertex.itemsize:
        raise ScanError(f"{path} is cut off: {count:,} vertices of {vertex.itemsize} bytes are not there")
    vertices = np.memmap(path, vertex, "r", start, (count,)) if count else np.empty(0, vertex)
    return np.stack([vertices[name].astype(np.float32) for name in "xyz"], axis=-1)


def _header(path: Path) -> tuple[str, int]:
    """The text up to end_header, and the offset of the data."""
    with path.open("rb") as file:
        content = file.read(_LONGEST_HEADER)
    end = re.search(rb"^end_header\r?\n", content, flags=re.MULTILINE)
    if not content.startswith(b"ply") or end is None:
        raise ScanError(f"{path} is no PLY file")
    return content[: end.end()].decode("ascii", "replace").replace("\r\n", "\n"), end.end()


def read_alignment(path: Path) -> list[tuple[Path, Doubles]]:
    """Read a MeshLab project: the file of each scan, relative to the project, and world from scan [4, 4]. Raises
    `ScanError` and OSError.
    """
    if path.stat().st_size > _LARGEST_PROJECT:
        raise ScanError(f"{path} has {path.stat().st_size:,} bytes, and no MeshLab project is so large")
    try:
        meshes = ElementTree.fromstring(path.read_bytes()).findall(".//MLMesh")
    except ElementTree.ParseError as error:
        raise ScanError(f"{path} is no MeshLab project: {error}") from error
    found = []
    for mesh in meshes:
        name, text = mesh.get("filename") or "", mesh.findtext("MLMatrix44") or ""
        if not name or Path(name).name != name:
            raise ScanError(f"{path} names the scan {shown(name)}, which is no file beside it")
        values = np.array(text.split(), dtype=np.float64) if re.fullmatch(r"[-+.\deE\s]+", text) else np.empty(0)
        if values.size != 16 or not np.isfinite(values).all():
            raise ScanError(f"{path}: scan {name} stands at {shown(text)}; 16 numbers are needed")
        found.append((path.parent / name, values.reshape(4, 4)))
    if not found:
        raise ScanError(f"{path} names no scans")
    return found


def read_scans(project: Path, voxel: float) -> Doubles:
    """All points of a project's scans in world coordinates, [N, 3], reduced to one mean point per cube of side
    `voxel`.
    """
    clouds = []
    for path, world_from_scan in read_alignment(project):
        points = read_ply(path).astype(np.float64)
        clouds.append(points @ world_from_scan[:3, :3].T + world_from_scan[:3, 3])
    return thin(np.concatenate(clouds), voxel)


def thin(points: Doubles, voxel: float) -> Doubles:
    """[N, 3] -> [M, 3]: the mean of the points in each cube, sorted by cube."""
    points = points[np.isfinite(points).all(axis=1)]
    cubes = np.floor(points / voxel).clip(-_FARTHEST, _FARTHEST).astype(np.int64)
    cubes -= cubes.min(axis=0, initial=0)
    spans = [int(span) + 1 for span in cubes.max(axis=0, initial=0)]
    if spans[0] * spans[1] * spans[2] < 1 << 62:
        keys = (cubes[:, 0] * spans[1] + cubes[:, 1]) * spans[2] + cubes[:, 2]
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    else:  # some 15 times as slow
        _, inverse, counts = np.unique(cubes, axis=0, return_inverse=True, return_counts=True)
    sums = np.stack([np.bincount(inverse, weights=points[:, axis], minlength=len(counts)) for axis in range(3)], -1)
    return sums / counts[:, None]
