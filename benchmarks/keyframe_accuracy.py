"""What key frames cost in accuracy: the embedded model on rendered scenes of many views, ordered and unordered apart.

    python -m benchmarks.keyframe_accuracy --views 16 48 96 --ways exact keyframes:24 --scenes 64 --out rows.jsonl

Ways as in `long_scenes.py`. A scene counts as ordered if two views in a row are nearer to each other, in camera centres
and viewing directions, than half the mean of all pairs. Each row has the mean over scenes of the AUC of poses at 30 and
5 degrees and of depth's AbsRel, and the differences from exact attention with 95 % intervals (paired bootstrap over
scenes).
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.long_scenes import attention_of
from vggt_int8 import VGGTInt8
from vggt_int8.eval.metrics import ScoreKeeper
from vggt_int8.files import append_json_line
from vggt_int8.scenes import render_scenes, scene_seeds
from vggt_int8.scorecard.intervals import paired_interval

FIRST = 100_000  # number of the first scene: others than in all other measurements
SCORES = ("auc_30", "auc_5", "abs_rel")


def is_ordered(extrinsic: Tensor) -> bool:
    """extrinsic [S, 3, 4] camera from world."""
    rotation, translation = extrinsic[:, :, :3], extrinsic[:, :, 3]
    centre, direction = -(rotation.mT @ translation[..., None])[..., 0], rotation[:, 2]
    distance = torch.cdist(centre, centre) / torch.cdist(centre, centre).mean() + torch.cdist(direction, direction)
    return bool(distance.diagonal(1).mean() < 0.5 * distance.mean())


def measure(model: VGGTInt8, views: int, ways: list[str], scenes: int) -> list[dict[str, object]]:
    keepers, ordered = {way: ScoreKeeper() for way in ways}, []
    for i in range(scenes):
        batch = render_scenes(scene_seeds("held_out", [FIRST + i]), views, device=model.device)
        ordered.append(is_ordered(batch.extrinsic[0]))
        for way in ways:
            keepers[way].add_output(model(batch.images, **attention_of(way, model.config.depth)), batch)
    scores = {way: {name: torch.tensor(keepers[way].scene_scores()[name]) for name in SCORES} for way in ways}
    rows: list[dict[str, object]] = []
    for kind, chosen in (("all", [True] * scenes), ("ordered", ordered), ("unordered", [not one for one in ordered])):
        mask = torch.tensor(chosen)
        for way in ways:
            row: dict[str, object] = {"views": views, "way": way, "kind": kind, "scenes": int(mask.sum())}
            for name in SCORES:
                found = scores[way][name][mask]
                row[name] = round(found.mean().item(), 5)
                if way != "exact" and len(found):
                    difference = paired_interval(scores["exact"][name][mask].tolist(), found.tolist())
                    row[f"{name}_difference"] = [round(x, 5) for x in difference]
            rows.append(row)
    return rows


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, nargs="+", default=[16, 48, 96])
    parser.add_argument("--ways", nargs="+", default=["exact", "keyframes:8", "keyframes:16", "keyframes:24"])
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--recipe", default="int8_rotated")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="file to append JSON lines to")
    arguments = parser.parse_args()
    if arguments.ways[0] != "exact":
        parser.error("the first way must be exact, with which the others are compared")
    model = VGGTInt8.from_pretrained("embedded", recipe=arguments.recipe, device_map=arguments.device).eval()
    for views in arguments.views:
        start = time.monotonic()
        for row in measure(model, views, arguments.ways, arguments.scenes):
            print(row, flush=True)
            if arguments.out:
                append_json_line(arguments.out, row | {"recipe": arguments.recipe, "device": arguments.device})
        print(f"{views} views: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
