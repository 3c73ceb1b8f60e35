"""Windows against whole calls on ordered paths whose cameras are known: `python -m benchmarks.windows -o FILE.jsonl`.

The embedded model on held-out scenes whose views follow one another, as a video's do (scenes whose views are shuffled
are left out). Ways: all frames in one call, exact or with key frames, and `stream` in windows. Per way and number of
views: ATE (over the length of the path, per cent), AUC@30 and AUC@5 over all pairs of views, AbsRel of depth after one
scale per scene, the time, and of windows the drift at seams. `--loops` walks every path there and back, in windows,
without and with loops closed. The same seeds give the same scenes everywhere; rows are JSON lines with the versions.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vggt_int8 import VGGTInt8
from vggt_int8.eval.metrics import depth_errors, pose_errors, pose_scores, trajectory_error
from vggt_int8.export.report import installed_versions
from vggt_int8.files import append_json_line
from vggt_int8.geometry import camera_center
from vggt_int8.scenes import SceneBatch, describe_scenes, render_scenes, scene_seeds

SIZE = (112, 112)
FIRST = 2000  # scenes that no other table uses


def ordered_scenes(views: int, count: int, device: str) -> Iterator[SceneBatch]:
    """Scenes whose neighbours in time are neighbours in space."""
    index, found = FIRST, 0
    while found < count:
        centers = camera_center(describe_scenes(scene_seeds("held_out", [index]), 48, SIZE).extrinsic[0])
        step = (centers[1:] - centers[:-1]).norm(dim=-1).mean()
        nearest = torch.cdist(centers, centers).fill_diagonal_(torch.inf).amin(1).mean()
        if step < 4 * nearest:
            yield render_scenes(scene_seeds("held_out", [index]), views, SIZE, device=device)
            found += 1
        index += 1


def pictures(batch: SceneBatch) -> list[Any]:
    return list((batch.images[0].permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy())


def whole(model: VGGTInt8, batch: SceneBatch, **call: Any) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        images = (batch.images * 255).round() / 255
        pred = model(images.to(model.device), heads=("camera", "depth"), **call)
    return pred.extrinsic[0].cpu(), pred.depth[0, ..., 0].cpu()


def ate(extrinsic: Tensor, truth: Tensor) -> float:
    """In per cent of the path's length."""
    centers = camera_center(truth)
    path = (centers[1:] - centers[:-1]).norm(dim=-1).sum().item()
    return 100 * trajectory_error(extrinsic, truth) / path


def score(extrinsic: Tensor, depth: Tensor, batch: SceneBatch) -> dict[str, float]:
    truth = batch.extrinsic[0].cpu()
    poses = pose_scores(*pose_errors(extrinsic[None], truth[None]))
    errors = depth_errors(depth[None], batch.depth.cpu(), batch.valid.cpu(), "scale")
    return {
        "ate": ate(extrinsic, truth),
        "auc_30": poses.auc_30,
        "auc_5": poses.auc_5,
        "abs_rel": errors.abs_rel.mean().item(),
    }


def ways() -> dict[str, dict[str, Any]]:
    return {
        "exact": {},
        "keyframes 24": {"global_attention": "keyframes", "keyframes": 24},
        "windows 16/8": {"window": 16, "overlap": 8},
        "windows 24/8": {"window": 24, "overlap": 8},
        "windows 32/8": {"window": 32, "overlap": 8},
        "windows 48/16, keyframes 24": {
            "window": 48, "overlap": 16, "global_attention": "keyframes", "keyframes": 24
        },
    }  # fmt: skip


def run_way(model: VGGTInt8, batch: SceneBatch, options: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Any]]:
    start = time.perf_counter()
    if "window" not in options:
        extrinsic, depth = whole(model, batch, **options)
        return extrinsic, depth, {"seconds": time.perf_counter() - start}
    stream = model.stream(pictures(batch), **options)
    frames = list(stream)
    seams = [seam.drift for seam in stream.report.seams]
    more = {
        "seconds": time.perf_counter() - start,
        "seam_rotation": sum(drift.rotation_degrees for drift in seams) / max(len(seams), 1),
        "seam_translation": sum(drift.translation for drift in seams) / max(len(seams), 1),
    }
    return torch.stack([f.extrinsic for f in frames]), torch.stack([f.depth for f in frames]), more


def there_and_back(model: VGGTInt8, batch: SceneBatch) -> dict[str, dict[str, Any]]:
    arrays = pictures(batch)
    truth = torch.cat([batch.extrinsic[0], batch.extrinsic[0].flip(0)[1:]]).cpu()
    with tempfile.TemporaryDirectory() as folder:
        stream = model.stream([*arrays, *arrays[-2::-1]], window=16, overlap=4, folder=Path(folder) / "s")
        before = torch.stack([frame.extrinsic for frame in stream])
        after = torch.cat([scene.extrinsic for scene in stream.scenes() if scene.extrinsic is not None])
        found = [
            {"frames": loop.frames, "seen": loop.seen, "likeness": loop.likeness, "closed": loop.closed}
            for loop in stream.report.loops
        ]
        return {
            "open": {"ate": ate(before, truth)},
            "closed": {"ate": ate(after, truth), "loops": found, **(stream.report.residual or {})},
        }


def mean_row(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Means over the scenes that have a number (a scene without a loop has no residual), and the median ATE."""
    keys = {key: None for row in rows for key, value in row.items() if isinstance(value, float)}
    found = {key: [row[key] for row in rows if key in row] for key in keys}
    means = {key: sum(values) / len(values) for key, values in found.items()}
    return {**means, "ate_median": float(torch.tensor(found["ate"]).median())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--views", type=int, nargs="+", default=[24, 48, 96, 192])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--recipe", default="int8_rotated")
    parser.add_argument("--loops", action="store_true", help="only walk paths there and back")
    wanted = parser.parse_args()
    model = VGGTInt8.from_pretrained("embedded", recipe=wanted.recipe, device_map=wanted.device).eval()
    device = torch.cuda.get_device_name() if wanted.device.startswith("cuda") else "cpu"
    base = {"recipe": wanted.recipe, "device": device, "versions": installed_versions(), "scenes": wanted.scenes}
    for views in wanted.views:
        rows: dict[str, list[dict[str, Any]]] = {}
        for batch in ordered_scenes(views, wanted.scenes, wanted.device):
            if wanted.loops:
                for name, row in there_and_back(model, batch).items():
                    rows.setdefault(name, []).append(row)
                continue
            for name, options in ways().items():
                extrinsic, depth, more = run_way(model, batch, options)
                rows.setdefault(name, []).append({**score(extrinsic, depth, batch), **more})
        for name, scored in rows.items():
            means = mean_row(scored)
            append_json_line(wanted.out, {**base, "views": views, "way": name, **means, "rows": scored})
            print(views, name, json.dumps({key: round(value, 4) for key, value in means.items()}), flush=True)


if __name__ == "__main__":
    main()
