"""Scenes an hour of `vggt-int8 batch`, beside the model called alone in a loop, on one GPU and on several.

`python -m benchmarks.batch_throughput -o FOLDER --gpus 2` makes a checkpoint of VGGT-1B's shapes with random weights
(time does not depend on their values) and scenes of JPEG photographs, then measures:

    alone    cameras and depth of the first scene, which lies on the GPU already, again and again, in this process
    batch    by the program: reading JPEGs, computing, writing cameras and depth; on one GPU, then on more

Steady state: from the first finished scene to the last, without loading and compiling. The last line is JSON.
`--device cpu` goes the same way with the embedded model and small pictures, in minutes: to try the program out.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vggt_int8 import VGGTConfig, VGGTInt8, load_images
from vggt_int8.bench.source import draw_weights
from vggt_int8.export.report import describe_machine, installed_versions

DISTINCT = 10  # photographs; the others are copies, which take as long to decode


def make_checkpoint(folder: Path, recipe: str, device: str) -> Path:
    """Of VGGT-1B's shapes without tracks, quantized; on a CPU the embedded model."""
    source: str | Path = "embedded"
    if device == "cuda":
        config = VGGTConfig(enable_track=False)
        model = VGGTInt8(config).eval()
        model.load_state_dict(draw_weights(config, torch.device("cuda")))
        model.save_pretrained(source := folder.with_name("floats"))
    VGGTInt8.from_pretrained(source, recipe=recipe, device_map=device).save_pretrained(folder)
    return folder


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
        shutil.copytree(first, folder / f"scene_{i:03d}")
    return folder


def alone(checkpoint: Path, scene: Path, device: str, calls: int = 5) -> list[float]:
    """Seconds of each call with images and weights on the device."""
    model = VGGTInt8.from_pretrained(checkpoint, device_map=device).eval()
    pixels = load_images(scene, model=model).to(model.device)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    seconds = []
    for _ in range(calls + 2):
        wait()
        start = time.perf_counter()
        with torch.inference_mode():
            model(pixels, heads=("camera", "depth"))
        wait()
        seconds.append(time.perf_counter() - start)
    return seconds[2:]


def batch(checkpoint: Path, scenes: Path, out: Path, devices: list[str]) -> float:
    """Seconds a scene from the first that is finished to the last."""
    command = [sys.executable, "-m", "vggt_int8", "batch", str(checkpoint), str(scenes), "-o", str(out)]
    chosen = [word for device in devices for word in ("--device", device)]
    subprocess.run([*command, *chosen, "--format", "depth", "--no-scene"], check=True, stdout=sys.stderr)
    finished = sorted((folder / "report.json").stat().st_mtime for folder in out.glob("scene_*"))
    # The first scene of every GPU ends beside the others' first: count from the last of these.
    return (finished[-1] - finished[len(devices) - 1]) / (len(finished) - len(devices))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--scenes", type=int, default=8, help="for each GPU")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--recipe", default="int8_rotated")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    arguments = parser.parse_args()
    if arguments.scenes < 2:
        parser.error("--scenes 2 or more: time is counted from the first scene on")
    if arguments.out.exists() and any(arguments.out.iterdir()):
        parser.error(f"{arguments.out} is not empty, and scenes of another run would be counted: give a new folder")
    device, size = arguments.device, (2016, 1512) if arguments.device == "cuda" else (320, 240)
    checkpoint = make_checkpoint(arguments.out / "checkpoint", arguments.recipe, device)
    sets = {
        gpus: make_scenes(arguments.out / f"scenes_{gpus}", arguments.scenes * gpus, arguments.images, size)
        for gpus in range(1, arguments.gpus + 1)
    }
    seconds = alone(checkpoint, sets[1] / "scene_000", device)
    if device == "cuda":
        torch.cuda.empty_cache()
    rows = {}
    for gpus, scenes in sets.items():
        devices = [f"cuda:{i}" if device == "cuda" else "cpu" for i in range(gpus)]
        rows[gpus] = batch(checkpoint, scenes, arguments.out / f"results_{gpus}", devices)
    one = statistics.median(seconds)
    print(
        json.dumps(
            {
                "images": arguments.images,
                "scenes_per_gpu": arguments.scenes,
                "alone_seconds": [round(value, 3) for value in seconds],
                "batch_seconds_per_scene": {gpus: round(value, 3) for gpus, value in rows.items()},
                "of_alone": round(one / rows[1], 3),
                "speed_up": {gpus: round(rows[1] / value, 3) for gpus, value in rows.items()},
                "machine": describe_machine(torch.device(device)),
                "versions": installed_versions(),
            }
        )
    )


if __name__ == "__main__":
    main()
