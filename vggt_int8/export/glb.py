"""`scene.glb`: points, and a frustum with its image for each camera, in one file for browsers and 3D programs.

glTF has y up and z towards the viewer, so a root node rotates the scene by 180 degrees around its x axis; below it all
coordinates are those of the other exports. Vertex colors in glTF are linear light, here as floats: 8 bits of linear
light are too few in dark regions, and 16 bits are misread by trimesh (findings/trimesh_glb_colors.sh). Textures are
sRGB. All materials are unlit, since photographs are already lit.

Nodes: `world` > `points`, `frusta` (lines), `images` (one textured rectangle per camera, all from one atlas), and a
glTF camera per image. https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html
"""

import io
import json
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vggt_int8.export.color import Array, Colors, colorize
from vggt_int8.export.frames import content_box, in_order
from vggt_int8.export.naming import image_names
from vggt_int8.export.selection import Selection
from vggt_int8.geometry import camera_center
from vggt_int8.scene.scene import Scene

POINTS = 1_000_000  # unless it is said otherwise: what a browser turns without effort
_MAGIC, _JSON, _BIN = 0x46546C67, 0x4E4F534A, 0x004E4942
_INT, _FLOAT = 5125, 5126
_POINTS, _LINES, _TRIANGLES = 0, 1, 4
_ARRAY_BUFFER, _INDEX_BUFFER = 34962, 34963
_LARGEST_ATLAS, _LARGEST_TILE = 4096, 160  # pixels
_UNLIT: dict[str, Any] = {"KHR_materials_unlit": {}}


def write_glb(path: Path, selection: Selection, pool: ThreadPoolExecutor) -> dict[str, Any]:
    """Write the file -> counts for the report. Cameras are left out where the scene has none.

    Raises ValueError for more than the 4 GiB that the format can hold.
    """
    scene, builder, children = selection.scene, _Builder(), []

    def light(index: int) -> tuple[Array, Array]:
        pixels = selection.pixels(index)
        return selection.points(index, pixels), linear_light().take(selection.colors(index, pixels))

    points, colors = zip(*in_order(pool, light, range(len(scene))), strict=True)
    if selection.kept:
        children.append(builder.node("points", builder.points(points, colors)))
    cameras = scene.extrinsic is not None and scene.intrinsic is not None and bool(scene.intrinsic.isfinite().all())
    if cameras:
        frusta = _Frusta(scene, _frustum_depth(scene, points))
        children.append(builder.node("frusta", builder.lines(*frusta.lines())))
        children.append(builder.node("images", builder.pictures(*frusta.pictures(), _atlas(scene, pool))))
        children += [builder.camera(name, *frusta.camera(index)) for index, name in enumerate(image_names(scene))]
    with path.open("xb") as file:
        file.writelines(builder.finish(children))
    return {"points": selection.kept, "cameras": len(scene) if cameras else 0}


@cache
def linear_light() -> Array:
    """fp32 [256]: the linear light of an 8-bit sRGB value, 1 for white."""
    value = np.arange(256) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).astype("<f4")


class _Builder:
    """The JSON part, and the binary part that it refers to."""

    def __init__(self) -> None:
        self.parts: list[bytes | memoryview] = []
        self.length = 0
        self.document: dict[str, list[Any]] = {
            name: [] for name in ("nodes", "meshes", "accessors", "bufferViews", "materials", "cameras")
        }

    def node(self, name: str, mesh: int) -> int:
        return self._add("nodes", {"name": name, "mesh": mesh})

    def camera(self, name: str, to_world: NDArray[np.float64], field_of_view: float, aspect: float) -> int:
        """to_world [4, 4] in glTF's axes, which are OpenGL's; the vertical field of view in radians."""
        perspective = {"yfov": field_of_view, "aspectRatio": aspect, "znear": 0.001}
        camera = self._add("cameras", {"type": "perspective", "name": name, "perspective": perspective})
        return self._add("nodes", {"name": name, "camera": camera, "matrix": to_world.T.reshape(-1).tolist()})

    def points(self, points: Sequence[Array], colors: Sequence[Array]) -> int:
        """Pieces [N, 3] of positions and of linear light, one point or more in all."""
        attributes = {"POSITION": self._positions(*points), "COLOR_0": self._triples(*colors)}
        return self._mesh("points", attributes, _POINTS, None, {})

    def lines(self, corners: Array, colors: Colors, ends: NDArray[np.uint32]) -> int:
        attributes = {"POSITION": self._positions(corners), "COLOR_0": self._triples(linear_light()[colors])}
        return self._mesh("frusta", attributes, _LINES, ends, {})

    def pictures(self, corners: Array, places: Array, triangles: NDArray[np.uint32], atlas: Image.Image) -> int:
        """Rectangles with their places (u, v) in the picture, which all share."""
        stream = io.BytesIO()
        atlas.save(stream, "JPEG", quality=85)
        self.document["images"] = [{"bufferView": self._view(stream.getvalue()), "mimeType": "image/jpeg"}]
        self.document["samplers"] = [{"magFilter": 9729, "minFilter": 9729, "wrapS": 33071, "wrapT": 33071}]
        self.document["textures"] = [{"source": 0, "sampler": 0}]
        uv = self._accessor(self._view(_bytes_of(places), target=_ARRAY_BUFFER), _FLOAT, len(places), "VEC2")
        attributes = {"POSITION": self._positions(corners), "TEXCOORD_0": uv}
        return self._mesh("images", attributes, _TRIANGLES, triangles, {"baseColorTexture": {"index": 0}})

    def finish(self, children: list[int]) -> list[bytes | memoryview]:
        """The file, in pieces."""
        half_turn = [1.0, 0.0, 0.0, 0.0]  # quaternion x y z w: around x
        world: dict[str, Any] = {"name": "world", "rotation": half_turn}
        if children:
            world["children"] = children
        root = self._add("nodes", world)
        document: dict[str, Any] = {
            "asset": {"version": "2.0", "generator": "vggt-int8"},
            "scene": 0,
            "scenes": [{"nodes": [root]}],
            "extensionsUsed": ["KHR_materials_unlit"],
            **{name: entries for name, entries in self.document.items() if entries},
        }
        if self.length:
            document["buffers"] = [{"byteLength": self.length}]
        text = json.dumps(document, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        total = 12 + 8 + len(text) + (8 + self.length if self.length else 0)
        if total >= 1 << 32:
            raise ValueError(f"scene.glb would have {total:,} bytes, and the format ends at 4 GiB: set --max-points")
        pieces: list[bytes | memoryview] = [
            struct.pack("<3I", _MAGIC, 2, total),
            struct.pack("<2I", len(text), _JSON),
            text,
        ]
        if self.length:
            pieces += [struct.pack("<2I", self.length, _BIN), *self.parts]
        return pieces

    def _mesh(
        self, name: str, attributes: dict[str, int], mode: int, ends: NDArray[np.uint32] | None, base: dict[str, Any]
    ) -> int:
        material = {"name": name, "pbrMetallicRoughness": {"metallicFactor": 0, "roughnessFactor": 1, **base}}
        primitive: dict[str, Any] = {"attributes": attributes, "mode": mode}
        primitive["material"] = self._add("materials", {**material, "doubleSided": True, "extensions": _UNLIT})
        if ends is not None:
            content = ends.astype("<u4").tobytes()
            primitive["indices"] = self._accessor(self._view(content, target=_INDEX_BUFFER), _INT, ends.size, "SCALAR")
        return self._add("meshes", {"name": name, "primitives": [primitive]})

    def _positions(self, *pieces: Array) -> int:
        # Column by column: along the first axis of rows of three NumPy is twenty times slower.
        columns = [[piece[:, axis] for piece in pieces if len(piece)] for axis in range(3)]
        low, high = ([float(end([end(part) for part in parts])) for parts in columns] for end in (np.min, np.max))
        return self._triples(*pieces, min=low, max=high)

    def _triples(self, *pieces: Array, **ends: list[float]) -> int:
        view = self._view(*map(_bytes_of, pieces), target=_ARRAY_BUFFER)
        return self._accessor(view, _FLOAT, sum(map(len, pieces)), "VEC3", **ends)

    def _accessor(self, view: int, component: int, count: int, kind: str, **more: Any) -> int:
        return self._add(
            "accessors", {"bufferView": view, "componentType": component, "count": count, "type": kind, **more}
        )

    def _view(self, *pieces: bytes | memoryview, target: int | None = None) -> int:
        length = sum(map(len, pieces))
        view: dict[str, int] = {"buffer": 0, "byteOffset": self.length, "byteLength": length}
        if target is not None:
            view["target"] = target
        padding = b"\0" * (-length % 4)
        self.parts += [*pieces, padding]
        self.length += length + len(padding)
        return self._add("bufferViews", view)

    def _add(self, kind: str, entry: Any) -> int:
        self.document[kind].append(entry)
        return len(self.document[kind]) - 1


def _bytes_of(values: Array) -> memoryview:
    """The little-endian floats of an array, copied only if they lie otherwise in memory."""
    return np.ascontiguousarray(values, dtype="<f4").data.cast("B")


class _Frusta:
    """What each camera sees: the rectangle of its image at some depth, and lines from its centre."""

    def __init__(self, scene: Scene, depth: float) -> None:
        assert scene.extrinsic is not None
        assert scene.intrinsic is not None
        self.intrinsic = scene.intrinsic.numpy().astype(np.float64)
        extrinsic = scene.extrinsic.numpy().astype(np.float64)
        self.rotation = extrinsic[:, :, :3]
        self.centers = camera_center(scene.extrinsic.double()).numpy()
        self.boxes = np.array([content_box(transform) for transform in scene.transforms], dtype=np.float64)
        left, top, right, bottom = self.boxes.T - 0.5  # edges, where the first pixel's centre is at 0
        pixels = np.stack(
            [np.stack([x, y], -1) for x, y in ((left, top), (right, top), (right, bottom), (left, bottom))]
        )
        focal = np.stack([self.intrinsic[:, 0, 0], self.intrinsic[:, 1, 1]], -1)
        rays = np.concatenate([(pixels - self.intrinsic[:, :2, 2]) / focal, np.ones((4, len(focal), 1))], -1)
        local = rays.transpose(1, 0, 2) * depth  # [S, 4, 3]
        self.corners = np.einsum("sji,skj->ski", self.rotation, local) + self.centers[:, None]

    def lines(self) -> tuple[Array, Colors, NDArray[np.uint32]]:
        """Corners [5 S, 3], colours [5 S, 3] from the first image (dark) to the last (bright), and ends of lines."""
        count = len(self.centers)
        corners = np.concatenate([self.centers[:, None], self.corners], axis=1).reshape(-1, 3).astype(np.float32)
        shades = colorize(np.linspace(0.25, 1, count, dtype=np.float32)[None])[0]
        one = np.array([0, 1, 0, 2, 0, 3, 0, 4, 1, 2, 2, 3, 3, 4, 4, 1], dtype=np.uint32)
        ends = (np.arange(count, dtype=np.uint32)[:, None] * 5 + one).reshape(-1)
        return corners, np.repeat(shades, 5, axis=0), ends

    def pictures(self) -> tuple[Array, Array, NDArray[np.uint32]]:
        """Corners [4 S, 3], their places in the atlas [4 S, 2], and corners of triangles."""
        count = len(self.centers)
        columns, rows = _grid(count)
        cell = np.arange(count)
        left, top = cell % columns, cell // columns
        places = np.stack(
            [
                np.stack([(left + right) / columns, (top + down) / rows], axis=-1)
                for right, down in ((0, 0), (1, 0), (1, 1), (0, 1))
            ],
            axis=1,
        )
        one = np.array([0, 3, 2, 0, 2, 1], dtype=np.uint32)
        triangles = (np.arange(count, dtype=np.uint32)[:, None] * 4 + one).reshape(-1)
        return self.corners.reshape(-1, 3).astype(np.float32), places.reshape(-1, 2).astype(np.float32), triangles

    def camera(self, index: int) -> tuple[NDArray[np.float64], float, float]:
        """World from camera [4, 4] in OpenGL axes, vertical field of view in radians, width over height."""
        left, top, right, bottom = self.boxes[index]
        fx, fy = self.intrinsic[index, 0, 0], self.intrinsic[index, 1, 1]
        to_world = np.eye(4)
        to_world[:3, :3] = self.rotation[index].T * np.array([1, -1, -1])
        to_world[:3, 3] = self.centers[index]
        wide, high = (right - left) / fx, (bottom - top) / fy
        return to_world, float(2 * np.arctan(high / 2)), float(wide / high)


def _grid(count: int) -> tuple[int, int]:
    """Columns and rows of the atlas."""
    columns = int(np.ceil(np.sqrt(count)))
    return columns, int(np.ceil(count / columns))


def _atlas(scene: Scene, pool: ThreadPoolExecutor) -> Image.Image:
    """All images, small, stretched to equal rectangles: their frusta have the right shapes."""
    columns, rows = _grid(len(scene))
    side = max(1, min(_LARGEST_TILE, _LARGEST_ATLAS // columns))
    atlas = Image.new("RGB", (columns * side, rows * side))

    def tile(index: int) -> Image.Image:
        picture = Image.fromarray(scene.colors[index].numpy())
        return picture.resize((side, side), Image.Resampling.BOX, box=content_box(scene.transforms[index]))

    for index, small in enumerate(in_order(pool, tile, range(len(scene)))):
        atlas.paste(small, (index % columns * side, index // columns * side))
    return atlas


def _frustum_depth(scene: Scene, pieces: Sequence[Array]) -> float:
    """How long frusta are: less than from a camera to its neighbour, and small beside what is seen."""
    assert scene.extrinsic is not None
    centers = camera_center(scene.extrinsic.double()).numpy()
    step = np.median(np.linalg.norm(np.diff(centers, axis=0), axis=-1)) if len(centers) > 1 else 0.0
    every = max(1, sum(map(len, pieces)) // 10_000)
    sample = np.concatenate([piece[::every] for piece in pieces])
    reach = float(np.median(np.linalg.norm(sample - centers.mean(0), axis=-1))) if len(sample) else 1.0
    return float(np.clip(0.5 * step, 0.02 * reach, 0.1 * reach)) or 1.0
