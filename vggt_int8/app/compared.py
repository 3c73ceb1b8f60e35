"""Reconstruct the same images with one or two recipes: output files, time, memory and differences."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vggt_int8.app.models import Models
from vggt_int8.eval.metrics import geometric_differences
from vggt_int8.export import ExportOptions, PointOptions, write_scene
from vggt_int8.export.points import point_source
from vggt_int8.geometry import camera_center, rotation_error_degrees
from vggt_int8.images import ImageTransform, read_images
from vggt_int8.pretrained.int8_network import Int8Network
from vggt_int8.scene import Scene, load_scene

GLB_POINTS = 300_000  # that a page's viewer turns without effort
REPEATED_BELOW = 5.0  # seconds: the first call compiles and fills caches, so a short one is made again to be timed
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Outcome:
    """Reconstruction with one recipe; its files are in `folder`: scene.glb, depth/, scene/."""

    recipe: str
    folder: Path
    seconds: float  # of one forward pass
    warm: bool  # whether it was a second call
    weights: int  # bytes
    peak: int | None  # bytes of GPU memory, its own weights included; None on a CPU, and of a first call
    runs_on: str

    @property
    def scene(self) -> Scene:
        return load_scene(self.folder)

    @property
    def pictures(self) -> list[Path]:
        """Depth images, one per input image."""
        return sorted((self.folder / "depth").glob("*.png"))


@dataclass(frozen=True)
class Comparison:
    """One or two outcomes, and the differences of the second from the first; see `geometric_differences`."""

    outcomes: list[Outcome]
    differences: dict[str, dict[str, float]]


def compare_recipes(
    models: Models,
    recipes: Sequence[str],
    images: Sequence[Path],
    folder: Path,
    *,
    percentile: float = 25.0,
    progress: Progress = lambda part, words: None,
) -> Comparison:
    """Reconstruct `images` with each recipe and write the files below `folder`. percentile: of points to omit.

    Raises ValueError for unknown recipes, and the errors of reading images and running the model.
    """
    outcomes, predictions = [], []
    size = (1, 1)
    for number, recipe in enumerate(recipes):
        progress(number / len(recipes), f"loading the model as {recipe}")
        network = models.get(recipe)
        pixels, transforms = read_images(images, model=network)
        size = (pixels.shape[-2], pixels.shape[-1])
        progress((number + 0.3) / len(recipes), f"reconstructing {len(images)} images as {recipe}")
        prediction, seconds, warm, peak = timed(network, pixels)
        if peak is not None:
            peak -= models.bytes_beside(recipe, network.device.type)  # of the other side's model, which stays loaded
        progress((number + 0.8) / len(recipes), f"writing results of {recipe}")
        place = folder / f"{number}_{recipe}"
        write(place, prediction, transforms, images, percentile)
        weights = sum(tensor.nbytes for tensor in network.state_dict().values())
        outcomes.append(Outcome(recipe, place, seconds, warm, weights, peak, kernels_of(network)))
        predictions.append(prediction)
    differences = geometric_differences(predictions[0], predictions[1], size) if len(predictions) == 2 else {}
    return Comparison(outcomes, differences)


def timed(network: Int8Network, pixels: Tensor) -> tuple[dict[str, Tensor], float, bool, int | None]:
    """The network's outputs on the CPU in fp32, the duration of a call in seconds, whether it was a repeated call, and
    the peak GPU memory in bytes.
    """
    on_gpu = network.device.type == "cuda"
    inputs = pixels.to(network.device)

    def call() -> tuple[Any, float]:
        if on_gpu:
            torch.cuda.synchronize(network.device)
        start = time.perf_counter()
        with torch.inference_mode():
            output = network(inputs)
        if on_gpu:
            torch.cuda.synchronize(network.device)
        return output, time.perf_counter() - start

    output, seconds = call()
    warm = seconds < REPEATED_BELOW
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(network.device)
    if warm:
        output, seconds = call()
    peak = torch.cuda.max_memory_allocated(network.device) if on_gpu and warm else None
    tensors = {key: value.float().cpu() for key, value in output.items() if isinstance(value, Tensor)}
    return tensors, seconds, warm, peak


def write(
    folder: Path,
    prediction: dict[str, Tensor],
    transforms: Sequence[ImageTransform],
    images: Sequence[Path],
    percentile: float,
) -> None:
    """Write scene.glb, depth images, and the scene itself for other exports."""
    scene = Scene.from_prediction(prediction, transforms, [path.name for path in images], list(images))
    folder.mkdir(parents=True)
    points = PointOptions(confidence_percentile=percentile, max_points=GLB_POINTS)
    formats = (["glb"] if point_source(scene, None) else []) + (["depth"] if scene.depth is not None else [])
    write_scene(folder, scene, formats, ExportOptions(points=points), save=True)


def kernels_of(network: Int8Network) -> str:
    """The kernels of most INT8 layers."""
    names = [f"{row.backend} ({row.kernel})" for row in network.quantization_report() if row.backend != "pytorch"]
    return max(set(names), key=names.count) if names else "PyTorch"


def cost_table(comparison: Comparison) -> list[list[str]]:
    """Rows of recipe, seconds, weights, GPU memory, kernels."""
    return [
        [
            outcome.recipe,
            f"{outcome.seconds:.2f} s" + ("" if outcome.warm else " (first call)"),
            f"{outcome.weights / 1e6:,.1f} MB",
            "–" if outcome.peak is None else f"{outcome.peak / 2**30:.2f} GiB",
            outcome.runs_on,
        ]
        for outcome in comparison.outcomes
    ]


def difference_table(comparison: Comparison) -> list[list[str]]:
    """Rows of quantity and difference, in two columns each."""
    units = {"degrees": "°", "percent": " %"}
    rows = []
    for name, values in comparison.differences.items():
        what, _, unit = name.rpartition("_")
        numbers = (f"{kind}: {value:.3g}{units[unit]}" for kind, value in values.items())
        rows.append([what.replace("_", " "), *numbers])
    return rows


def camera_table(scene: Scene) -> list[list[str]]:
    """Rows of image, position, rotation from the first image, and focal length in pixels of the image; empty without
    cameras.
    """
    if scene.extrinsic is None or scene.intrinsic is None:
        return []
    centers = camera_center(scene.extrinsic)
    turns = rotation_error_degrees(scene.extrinsic[:1, :, :3].expand(len(scene), 3, 3), scene.extrinsic[:, :, :3])
    rows = []
    for index, name in enumerate(scene.names):
        focal = scene.transforms[index].intrinsic_to_original(scene.intrinsic[index])[0, 0]
        position = ", ".join(f"{value:.3f}" for value in centers[index].tolist())
        rows.append([name, position, f"{float(turns[index]):.1f}°", f"{float(focal):.0f} px"])
    return rows
