"""Scenes an hour of `vggt-int8 batch`, beside the model called alone in a loop, on one GPU and on several.

`python -m benchmarks.batch_throughput -o FOLDER --gpus 1 2 --scenes 24x10 8x100` makes a checkpoint of VGGT-1B's shapes
with random weights (time does not depend on their values) and, for each GPU, 24 scenes of 10 JPEG photographs and 8 of
100, then measures:

    alone    cameras and depth of the first scene, which lies on the GPU already, again and again, in this process
    batch    by the program: reading JPEGs, computing, writing cameras and depth; on so many GPUs

Steady state: from the moment when every GPU has finished its first scene to the last file written, without loading and
compiling. `stages` are medians of what each stage of a scene took; they run beside one another. Photographs have 3
megapixels, or the sizes of `--size`; `--fast-jpeg` is passed on to `batch`. Prints one JSON line for each kind of
scenes and size; --rows FILE appends them there. `--device cpu` goes the same way with the embedded model and small
pictures, in minutes: to try the program out.
"""

import argparse
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vggt_int8 import VGGTConfig, VGGTInt8, load_images, quantize
from vggt_int8.bench.source import draw_weights
from vggt_int8.bench.timing import release
from vggt_int8.export.report import describe_machine, installed_versions
from vggt_int8.files import append_json_line

CHECKPOINT = "checkpoint"
DISTINCT = 10  # photographs; the others are copies, which take as long to decode


def build(recipe: str, device: str) -> VGGTInt8:
    """VGGT-1B's shapes without tracks, random, quantized; on a CPU the embedded model."""
    if device == "cpu":
        return VGGTInt8.from_pretrained("embedded", recipe=recipe)
    config = VGGTConfig(enable_track=False)
    model = VGGTInt8(config).to(device).eval().requires_grad_(False)
    model.load_state_dict(draw_weights(config, torch.device(device)))
    return quantize(model, recipe).half()


def make_scenes(folder: Path, scenes: int, images: int, size: tuple[int, int]) -> Path:
    """Photographs of (W, H) pixels: smooth colours and grain, so that they are as long to decode as real ones."""
    first = folder / "scene_000"
    first.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i in range(min(images, DISTINCT)):
        smooth = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(size)
        grain = generator.normal(0, 6, (size[1], size[0], 1))
        pixels = np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(first / f"{i:04d}.jpg", quality=92)
    for i in range(DISTINCT, images):
        shutil.copy(first / f"{i % DISTINCT:04d}.jpg", first / f"{i:04d}.jpg")
    for i in range(1, scenes):
        shutil.copytree(first, folder / f"scene_{i:03d}", copy_function=os.link)
    return folder


def alone(model: VGGTInt8, scene: Path, calls: int = 5) -> list[float]:
    """Seconds of each call with images and weights on the device."""
    pixels = load_images(scene, model=model).to(model.device)
    seconds = []
    for _ in range(calls + 2):
        if pixels.is_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.inference_mode():
            model(pixels, heads=("camera", "depth"))
        if pixels.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds[2:]


@dataclass(frozen=True)
class Batch:
    """seconds: of a scene in the steady state. stages: median seconds of each."""

    seconds: float
    stages: dict[str, float]


def batch(checkpoint: Path, scenes: Path, out: Path, devices: list[str], *, fast_jpeg: bool) -> Batch:
    command = [sys.executable, "-m", "vggt_int8", "batch", str(checkpoint), str(scenes), "-o", str(out)]
    chosen = [word for device in devices for word in ("--device", device)]
    fast = ["--fast-jpeg"] if fast_jpeg else []
    subprocess.run([*command, *chosen, *fast, "--format", "depth", "--no-scene"], check=True, stdout=sys.stderr)
    finished = [(path.stat().st_mtime, json.loads(path.read_text())) for path in out.glob("scene_*/report.json")]
    times = [report["seconds"] for _, report in finished]
    stages = {name: round(statistics.median(seconds[name] for seconds in times), 4) for name in times[0]}
    return Batch(steady([(at, report["device"]) for at, report in finished]), stages)


def steady(finished: Sequence[tuple[float, str]]) -> float:
    """Seconds a scene since every device has finished its first. finished: when each scene was, and by which.

    Raises ValueError if none was finished after that.
    """
    warm = max(min(at for at, other in finished if other == device) for device in {device for _, device in finished})
    after = [at for at, _ in finished if at > warm]
    if not after:
        raise ValueError("no scene was finished after every device had finished its first: take more scenes")
    return (max(after) - warm) / len(after)


def measure(
    arguments: argparse.Namespace, model: VGGTInt8, scenes: int, images: int, size: tuple[int, int]
) -> dict[str, Any]:
    """A row: scenes of so many images of (W, H) pixels, so many for each GPU. model: which lies in the checkpoint."""
    device, place = arguments.device, arguments.out / "{}x{}_{}x{}".format(scenes, images, *size)
    everything = make_scenes(place / "scenes", scenes * max(arguments.gpus), images, size)
    one = statistics.median(seconds := alone(model, everything / "scene_000"))
    model.runtime.reset()
    release(model.device)  # the rest of the GPU is the program's
    rows = {}
    for gpus in arguments.gpus:
        part = place / f"scenes_{gpus}"
        part.mkdir()
        for i in range(scenes * gpus):
            (part / f"scene_{i:03d}").symlink_to(everything.absolute() / f"scene_{i:03d}")
        devices = [f"cuda:{i}" if device == "cuda" else "cpu" for i in range(gpus)]
        rows[gpus] = batch(
            arguments.out / CHECKPOINT, part, place / f"results_{gpus}", devices, fast_jpeg=arguments.fast_jpeg
        )
        shutil.rmtree(place / f"results_{gpus}")
    first = rows[arguments.gpus[0]]
    return {
        "images": images,
        "size": size,
        "fast_jpeg": arguments.fast_jpeg,
        "scenes_per_gpu": scenes,
        "alone_seconds": [round(value, 4) for value in seconds],
        "batch_seconds_per_scene": {gpus: round(row.seconds, 4) for gpus, row in rows.items()},
        "of_alone": {gpus: round(one / row.seconds / gpus, 3) for gpus, row in rows.items()},
        "speed_up": {gpus: round(first.seconds / row.seconds, 3) for gpus, row in rows.items()},
        "stages": {gpus: row.stages for gpus, row in rows.items()},
        "recipe": arguments.recipe,
        "machine": describe_machine(torch.device(device)),
        "versions": installed_versions(),
    }


def numbers_of_scenes(text: str) -> tuple[int, int]:
    """SCENESxIMAGES."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None or int(found[1]) < 2 or not int(found[2]):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not SCENESxIMAGES, as 8x100, of 2 scenes or more: time is counted from the first one on"
        )
    return int(found[1]), int(found[2])


def width_and_height(text: str) -> tuple[int, int]:
    """WxH, in pixels."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not WxH, as 4032x3024")
    return int(found[1]), int(found[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True, help="a new folder: checkpoint, scenes, results")
    parser.add_argument("--rows", type=Path, help="file to append the JSON lines to")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1], help="numbers of GPUs; the first is compared with")
    parser.add_argument(
        "--scenes", type=numbers_of_scenes, nargs="+", default=[(8, 100)], metavar="SCENESxIMAGES", help="for each GPU"
    )
    parser.add_argument(
        "--size", type=width_and_height, nargs="+", metavar="WxH", help="of the photographs; 2016x1512, on CPUs 320x240"
    )
    parser.add_argument("--fast-jpeg", action="store_true", help="as the option of `batch`")
    parser.add_argument("--recipe", default="int8_rotated")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    arguments = parser.parse_args()
    if arguments.out.exists() and any(arguments.out.iterdir()):
        parser.error(f"{arguments.out} is not empty, and scenes of another run would be counted: give a new folder")
    model = build(arguments.recipe, arguments.device)
    model.save_pretrained(arguments.out / CHECKPOINT)
    sizes = arguments.size or [(2016, 1512) if arguments.device == "cuda" else (320, 240)]
    for (scenes, images), size in itertools.product(arguments.scenes, sizes):
        row = measure(arguments, model, scenes, images, size)
        print(json.dumps(row), flush=True)
        if arguments.rows:
            append_json_line(arguments.rows, row)


if __name__ == "__main__":
    main()
