"""Exports of a scene at VGGT-1B's size: seconds of each format and of all at once, and the memory that they take.

    python -m benchmarks.exports --out exports.jsonl [--frames 100] [--folder /tmp] [--repeats 3] [--saved] [--each]

The scene is the inside of a sphere with a noisy wall, seen by cameras that move along a spiral: depth of different
images agrees, so that points have tracks, and no picture is easy to compress. It has all that a run has, the point
head's points, too. Points are those that `run` takes by default, images are not copied. --saved: the scene lies on the
disk, as after `vggt-int8 run`, and is mapped from there. Every repeat writes into a new folder below --folder, all
formats in one call as `run --format` does, with --each then each by itself; a row holds the median of the seconds.
Memory is that of one more run, since looking at it often costs the threads that are timed a fifth of their time.

Columns: formats, seconds, bytes written, and memory at its highest above what was there before: `anonymous` (RssAnon,
sampled every 5 ms) is what the process needs, `resident` (RSS) counts pages of mapped files, which the system may take
away, as well.
"""

import argparse
import math
import os
import platform
import shutil
import statistics
import tempfile
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vggt_int8.export import Scene, SceneWriter, write_scene
from vggt_int8.export.write import check_formats
from vggt_int8.files import append_json_line
from vggt_int8.images import ImageTransform
from vggt_int8.machine import cpu_name, threads
from vggt_int8.scene.unproject import unproject

SIZE = (392, 518)
ORIGINAL = (3024, 4032)  # a photograph of a phone, on the way to SIZE
ALL = ("colmap", "glb", "ply", "transforms", "npz", "depth")


def frames(first: int, last: int, total: int) -> Scene:
    """Images `first` to `last` of a scene of `total`."""
    height, width = SIZE
    count = last - first
    generator = np.random.default_rng(first)
    intrinsic = np.array([[450.0, 0, width / 2], [0, 450.0, height / 2], [0, 0, 1]])
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    rays = np.stack([(columns - width / 2) / 450, (rows - height / 2) / 450, np.ones(SIZE)], axis=-1)
    extrinsic, depth = np.empty((count, 3, 4), np.float32), np.empty((count, *SIZE), np.float32)
    for number, index in enumerate(range(first, last)):
        angle = 4 * math.pi * index / total
        center = np.array([0.6 * math.cos(angle), 0.4 * index / total - 0.2, 0.6 * math.sin(angle)])
        turn = np.array([[math.cos(angle), 0, -math.sin(angle)], [0, 1, 0], [math.sin(angle), 0, math.cos(angle)]])
        extrinsic[number] = np.concatenate([turn, (-turn @ center)[:, None]], axis=1)
        world = rays @ turn  # rows of the rotation are axes of the camera
        a, b, c = (world**2).sum(-1), world @ center, center @ center - 9
        depth[number] = (np.sqrt(b * b - a * c) - b) / a
    depth *= 1 + 0.002 * generator.standard_normal(depth.shape, dtype=np.float32)
    confidence = 1 + np.exp(generator.standard_normal(depth.shape, dtype=np.float32))
    points = np.stack([unproject(depth[i], extrinsic[i], intrinsic) for i in range(count)])
    scale = (width / ORIGINAL[1], height / ORIGINAL[0])
    names = [f"IMG_{index:04d}.jpg" for index in range(first, last)]
    return Scene(
        names=names,
        transforms=[ImageTransform(ORIGINAL, SIZE, scale, (0, 0))] * count,
        colors=torch.from_numpy(generator.integers(0, 256, (count, *SIZE, 3), dtype=np.uint8)),
        extrinsic=torch.from_numpy(extrinsic),
        intrinsic=torch.from_numpy(np.repeat(intrinsic[None].astype(np.float32), count, axis=0)),
        depth=torch.from_numpy(depth),
        depth_conf=torch.from_numpy(confidence),
        world_points=torch.from_numpy(points),
        world_points_conf=torch.from_numpy(confidence),
        files=[Path("/photographs") / name for name in names],
    )


class Memory:
    """The most memory of this process while the block runs, above what it had before."""

    def __enter__(self) -> "Memory":
        self.before, self.most, self.ended = status(), status(), threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        self.anonymous, self.resident = (most - before for most, before in zip(self.most, self.before, strict=True))

    def _watch(self) -> None:
        while not self.ended.wait(0.005):
            self.most = tuple(map(max, self.most, status()))  # type: ignore[assignment]


def status() -> tuple[int, int]:
    """RssAnon and RSS of this process, in bytes."""
    values = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(values["RssAnon"].split()[0]) * 1024, int(values["VmRSS"].split()[0]) * 1024


def measure(scene: Scene, formats: tuple[str, ...], folder: Path, repeats: int) -> dict[str, Any]:
    seconds, written, used = [], 0, Memory()
    for number in range(repeats + 1):
        out = Path(tempfile.mkdtemp(dir=folder))
        with used if number == repeats else nullcontext():
            start = time.perf_counter()
            write_scene(out, scene, formats, release_pages=True)
            seconds.append(time.perf_counter() - start)
        written = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
        shutil.rmtree(out)
    del seconds[repeats:]
    return {
        "formats": ",".join(formats),
        "seconds": round(statistics.median(seconds), 3),
        "seconds_all": [round(value, 3) for value in seconds],
        "bytes": written,
        "anonymous_bytes": used.anonymous,
        "resident_bytes": used.resident,
    }


def saved_scene(folder: Path, total: int) -> Scene:
    """A scene on the disk, made and written a few frames at a time."""
    with SceneWriter(folder / "scene") as writer:
        for first in range(0, total, 20):
            writer.add(frames(first, min(first + 20, total), total))
        return writer.finish()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--saved", action="store_true")
    parser.add_argument("--formats", default=",".join(ALL), help="all at once; by themselves as well with --each")
    parser.add_argument("--each", action="store_true")
    arguments = parser.parse_args()
    together = check_formats(arguments.formats.split(","))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        scene = (
            saved_scene(folder, arguments.frames) if arguments.saved else frames(0, arguments.frames, arguments.frames)
        )
        for formats in [together, *((one,) for one in together if arguments.each)]:
            row = {
                **measure(scene, formats, folder, arguments.repeats),
                "frames": arguments.frames,
                "size": list(SIZE),
                "saved": arguments.saved,
                "cpu": cpu_name(),
                "threads": threads(),
                "cpus": os.cpu_count(),
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
                "date": time.strftime("%Y-%m-%d"),
            }
            print(
                f"{row['formats']:40} {row['seconds']:7.3f} s  {row['bytes'] / 1e6:9.1f} MB written, "
                f"{row['anonymous_bytes'] / 1e6:8.1f} MB anonymous, {row['resident_bytes'] / 1e6:8.1f} MB resident",
                flush=True,
            )
            if arguments.out:
                append_json_line(arguments.out, row)


if __name__ == "__main__":
    main()
