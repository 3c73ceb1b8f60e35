"""What looking at less costs in accuracy: the embedded model on rendered scenes of many views, ordered and unordered
apart.

    python -m benchmarks.keyframe_accuracy --views 16 48 96 --ways exact keyframes:24 windows:16:8 --out rows.jsonl

Ways as in `long_scenes.py`, `auto:K`, and `windows:N:M` for `stream` in windows of N frames with an overlap of M, each
exact. A scene counts as ordered if two views in a row are nearer to each other, in camera centres and viewing
directions, than half the mean of all pairs. Each row has the mean over scenes of the AUC of poses at 30 and 5 degrees,
depth's AbsRel, and ATE in per cent of the path's length, the differences from exact attention with 95 % intervals
(paired bootstrap over scenes), and the seconds of a scene (processor time on a CPU).
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.long_scenes import attention_of
from benchmarks.windows import ate, pictures
from vggt_int8 import VGGTInt8
from vggt_int8.eval.metrics import ScoreKeeper
from vggt_int8.files import append_json_line
from vggt_int8.scenes import SceneBatch, render_scenes, scene_seeds
from vggt_int8.scorecard.intervals import paired_interval

FIRST = 100_000  # number of the first scene: others than in all other measurements
SCORES = ("auc_30", "auc_5", "abs_rel", "ate")


def is_ordered(extrinsic: Tensor) -> bool:
    """extrinsic [S, 3, 4] camera from world."""
    rotation, translation = extrinsic[:, :, :3], extrinsic[:, :, 3]
    centre, direction = -(rotation.mT @ translation[..., None])[..., 0], rotation[:, 2]
    distance = torch.cdist(centre, centre) / torch.cdist(centre, centre).mean() + torch.cdist(direction, direction)
    return bool(distance.diagonal(1).mean() < 0.5 * distance.mean())


def run_way(model: VGGTInt8, batch: SceneBatch, way: str) -> tuple[Tensor, Tensor, float]:
    """-> extrinsic [1, S, 3, 4] and depth [1, S, H, W] on the truth's device, and seconds."""
    clock = time.process_time if batch.images.device.type == "cpu" else time.perf_counter
    start = clock()
    if way.startswith("windows:"):
        window, overlap = (int(number) for number in way.split(":")[1:])
        frames = list(model.stream(pictures(batch), window=window, overlap=overlap))
        extrinsic, depth = (torch.stack([getattr(f, name) for f in frames])[None] for name in ("extrinsic", "depth"))
    else:
        pred = model(batch.images, heads=("camera", "depth"), **attention_of(way, model.config.depth))
        assert pred.extrinsic is not None
        assert pred.depth is not None
        extrinsic, depth = pred.extrinsic, pred.depth.squeeze(-1)
    extrinsic, depth = extrinsic.to(batch.depth.device), depth.to(batch.depth.device)
    if batch.images.is_cuda:
        torch.cuda.synchronize()
    return extrinsic, depth, clock() - start


def score(model: VGGTInt8, batch: SceneBatch, way: str) -> dict[str, float]:
    extrinsic, depth, seconds = run_way(model, batch, way)
    keeper = ScoreKeeper()
    keeper.add(extrinsic, depth, batch.extrinsic, batch.depth, batch.valid)
    scores = {name: values[0] for name, values in keeper.scene_scores().items()}
    return {**scores, "ate": ate(extrinsic[0], batch.extrinsic[0]), "seconds": seconds}


def measure(model: VGGTInt8, views: int, ways: list[str], scenes: int, first: int) -> list[dict[str, Any]]:
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    ordered = []
    for i in range(scenes):
        batch = render_scenes(scene_seeds("held_out", [first + i]), views, device=model.device)
        ordered.append(is_ordered(batch.extrinsic[0]))
        for way in ways:
            found[way].append(score(model, batch, way))
    rows = []
    for kind, chosen in (("all", [True] * scenes), ("ordered", ordered), ("unordered", [not one for one in ordered])):
        for way in ways:
            its, exact = ([row for row, one in zip(found[w], chosen, strict=True) if one] for w in (way, "exact"))
            summary = _summary(its, None if way == "exact" else exact)
            rows.append({"views": views, "way": way, "kind": kind, "scenes": len(its), **summary})
    return rows


def _summary(rows: list[dict[str, float]], exact: list[dict[str, float]] | None) -> dict[str, Any]:
    """Means over scenes, and differences from those of exact attention with their intervals; None: it is exact."""
    if not rows:
        return {}
    means: dict[str, Any] = {}
    for name in SCORES:
        its = [row[name] for row in rows]
        means[name] = round(sum(its) / len(its), 5)
        if exact is not None:
            difference = paired_interval([row[name] for row in exact], its)
            means[f"{name}_difference"] = [round(x, 5) for x in difference]
    return means | {"seconds": round(sum(row["seconds"] for row in rows) / len(rows), 3)}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, nargs="+", default=[16, 48, 96])
    parser.add_argument("--ways", nargs="+", default=["exact", "keyframes:8", "keyframes:16", "keyframes:24"])
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--first", type=int, default=FIRST, help="number of the first scene")
    parser.add_argument("--recipe", default="int8_rotated")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="file to append JSON lines to")
    arguments = parser.parse_args()
    if arguments.ways[0] != "exact":
        parser.error("the first way must be exact, with which the others are compared")
    model = VGGTInt8.from_pretrained("embedded", recipe=arguments.recipe, device_map=arguments.device).eval()
    for views in arguments.views:
        start = time.monotonic()
        for row in measure(model, views, arguments.ways, arguments.scenes, arguments.first):
            print(row, flush=True)
            if arguments.out:
                facts = {"recipe": arguments.recipe, "device": arguments.device, "first": arguments.first}
                append_json_line(arguments.out, row | facts)
        print(f"{views} views: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
