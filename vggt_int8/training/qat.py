"""Quantization-aware training from end to end: a floating-point model and unlabeled images in, an INT8 checkpoint out.

    vggt-int8 qat embedded synthetic -o small-qat --recipe int8_rotated

The output folder is an ordinary INT8 checkpoint; its folder `run/` has the state for resuming when the command is given
again.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vggt_int8.calibration import Calibration, static_layers
from vggt_int8.disk import check_place
from vggt_int8.files import write_whole
from vggt_int8.kernels.reference import CODE_MAX
from vggt_int8.model.families import AnyNetwork, network_class
from vggt_int8.model.network import Network
from vggt_int8.model.network_config import NetworkConfig
from vggt_int8.model.unfilled import unfilled
from vggt_int8.pretrained.in_place import check_calibration, install, measured
from vggt_int8.pretrained.model import int8_class, int8_class_of
from vggt_int8.pretrained.upload import card_of
from vggt_int8.quant.fake import fake_quantize, restore, weight_for_codes
from vggt_int8.quant.plan import LayerPlan, make_plan, recipe_for
from vggt_int8.quant.quantize import plan_module
from vggt_int8.quant.smoothing import fold_
from vggt_int8.recipe import Recipe, load_recipe
from vggt_int8.training.checkpoint import least_bytes, read_facts
from vggt_int8.training.distiller import CALIBRATION, Distiller, changes_since
from vggt_int8.training.log import check_run_folder
from vggt_int8.training.loop import RunLimits
from vggt_int8.training.qat_config import QatConfig, read_table, settings_for
from vggt_int8.training.views import SYNTHETIC, Album, Rendered, Source, find_scenes

RUN = "run"
Kind = TypeVar("Kind", bound=Network)


@dataclass(frozen=True)
class QatEnd:
    """Where a run stopped, and the validation losses of its checkpoint, see `distill`."""

    step: int
    total_steps: int
    reason: str
    best_step: int
    best_loss: float
    start_loss: float


def check_out(out: Path) -> None:
    """Raise OSError if a run cannot be written to `out`, or if it has a model that was not made by a run."""
    if (out / "config.json").exists() and not (out / RUN).is_dir():
        raise FileExistsError(f"{out} holds a model already, which no run in it has made: name another --out")
    check_run_folder(out / RUN)


def train_qat(
    model: str,
    data: Sequence[str | Path],
    out: Path,
    recipe: str | Path | Recipe,
    *,
    calibration: Any = None,
    config: Path | None = None,
    total_steps: int | None = None,
    max_minutes: float | None = None,
    save_minutes: float = 4.0,
    quiet: bool = False,
    on_image: Callable[[int, int], None] | None = None,
) -> QatEnd | None:
    """Train `model` under the rounding of `recipe` to match its floating-point version; write it to `out` as INT8.

    model: as for `from_pretrained` of `VGGTInt8` or `VGGTOmegaInt8`, in floating point.
    data: "synthetic" for rendered scenes, or folders of images (`views.find_scenes`).
    calibration: as for `vggt_int8.quantize`, for static scales; by default from the data.
    config: a TOML file (`qat_config`).
    total_steps: overrides the file's.
    max_minutes: wall-clock time of this call.
    on_image: called with (images done, all images) while folders are read.

    Writes the weights with the best validation loss, possibly the initial ones. Returns None on all processes but the
    main one. Raises ValueError if the model is INT8, the data do not have two views of a scene, or a run in `out` is of
    another model or recipe; `RecipeError` if the recipe quantizes nothing; FloatingPointError if the run diverges;
    OSError if `out` cannot be written.
    """
    check_out(out)
    recipe, table = replace(load_recipe(recipe), rounding="nearest"), read_table(config)
    if calibration is not None and table.get("start") == "nearest":
        check_calibration(recipe, calibration)
    scenes = None if is_synthetic(data) else find_scenes(data)
    teacher = plain_network(model)
    settings = settings_for(table, teacher.config, config, total_steps)
    source = Rendered() if scenes is None else Album.read(scenes, teacher.config, on_image)
    recipe = recipe_for(teacher, recipe)
    plan = make_plan(teacher, recipe)
    # Weights that were trained become the codes that are nearest to them, wherever they began.
    begun = replace(recipe, rounding=settings.start) if recipe.activations_asked - {""} else recipe
    origin = {"model": digest(teacher), "recipe": recipe.to_dict(), "start": settings.start, "data": source.facts()}
    checkpoint = out / RUN / "checkpoint"
    before = read_facts(checkpoint) if (checkpoint / "trainer.json").is_file() else {}
    check_place(checkpoint, least_bytes(teacher, exact=Distiller.exact_moments))  # before minutes of calibration
    if before:  # what it cannot go on with is said first
        changes_since(before, checkpoint, origin, settings)
    if CALIBRATION in before:
        student, seen = student_to_resume(teacher, plan), before[CALIBRATION]
    else:
        if calibration is None and begun.needs_calibration:
            calibration = source.calibration(settings, recipe.calibration_samples)
        student, found = prepare_student(teacher, plan, begun, calibration)
        seen = None if found is None else found.facts
    distiller = Distiller(settings, out / RUN, student, teacher, source, origin, seen, quiet=quiet)
    reason = distiller.train(RunLimits(max_minutes, save_minutes=save_minutes))
    step, accelerator = distiller.step, distiller.accelerator
    if not accelerator.is_main_process:
        accelerator.end_training()
        return None
    best = distiller.restore_best()
    student = distiller.network.cpu()
    end = QatEnd(step, settings.optimizer.total_steps, reason, best["step"], best["loss"], best["start_loss"])
    write_int8(student, recipe, out, training_facts(settings, source, end), seen)
    accelerator.end_training()
    return end


def prepare_student(
    teacher: AnyNetwork, plan: dict[str, LayerPlan], recipe: Recipe, calibration: Any
) -> tuple[AnyNetwork, Calibration | None]:
    """A copy of the teacher with fake-quantized layers, and its calibration, if it needs one.

    Factors that the recipe folds are folded first, which does not change the floating-point function: they are trained
    with the weights. Weights that the recipe rounds by their inputs start at values that are encoded as the resulting
    codes.
    """
    student = copy_of(teacher).to(Accelerator().device)
    folds, found = measured(student, plan, recipe, calibration)
    fold_(student, folds)
    for name, codes in ({} if found is None else found.codes).items():
        scheme, layer = plan[name].scheme, student.get_submodule(name)
        assert scheme is not None
        assert isinstance(layer, nn.Linear)
        layer.weight.data = weight_for_codes(layer.weight.data, codes, scheme.rotation_of(layer.in_features))
    fake_quantize(student, plan, {} if found is None else found.scales)
    return student, found


def student_to_resume(teacher: AnyNetwork, plan: dict[str, LayerPlan]) -> AnyNetwork:
    """The same for a checkpoint to fill, which holds all that a calibration finds: folded factors, scales, weights."""
    student = copy_of(teacher).to(Accelerator().device)
    fake_quantize(student, plan, {name: torch.ones(of.input_scales) for name, of in static_layers(plan).items()})
    return student


def plain_network(model: str) -> AnyNetwork:
    """The floats of a model, in fp32 on the CPU. Raises ValueError if it is quantized."""
    loaded = int8_class_of(model).from_pretrained(model, dtype=torch.float32)
    if loaded.quantization_plan is not None:
        raise ValueError(f"{model} is INT8 already: training starts from the floating-point model that it was made of")
    return network_of(loaded.state_dict(), loaded.config, network_class(loaded.config))


def copy_of(model: AnyNetwork) -> AnyNetwork:
    """A plain network with copies of the weights."""
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return network_of(state, model.config, network_class(model.config))


def network_of(state: dict[str, Tensor], config: NetworkConfig, kind: type[Kind]) -> Kind:
    """A network of that class whose parameters are these tensors."""
    network = unfilled(kind, config)
    network.load_state_dict(state, assign=True)
    return network


def is_synthetic(data: Sequence[str | Path]) -> bool:
    """Whether scenes are to be rendered. Raises ValueError if that is combined with folders, or if nothing is given."""
    if not data:
        raise ValueError(f"no images given: pass folders of images, one for each scene, or {SYNTHETIC!r}")
    names = [str(entry) for entry in data]
    if SYNTHETIC in names and len(names) > 1:
        raise ValueError(f"{SYNTHETIC!r} stands alone: got {', '.join(names)}")
    return names == [SYNTHETIC]


def digest(model: Network) -> str:
    """sha256 over names, shapes and values of a network's weights."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).numpy().tobytes())
    return found.hexdigest()


def training_facts(config: QatConfig, source: Source, end: QatEnd) -> dict[str, Any]:
    """How a checkpoint was trained, for its config.json and model card: plain data."""
    return {
        "method": "quantization-aware distillation",
        "data": source.facts(),
        "step": end.best_step,
        "steps": end.step,
        "loss": end.best_loss,
        "start_loss": end.start_loss,
        "trained": config.trained,
        "scales": config.scales,
        "start": config.start,
        "seed": config.seed,
        "learning_rate": config.optimizer.learning_rate,
        "frames_per_step": config.data.frames_per_step,
        "mixed_precision": config.mixed_precision,
    }


def write_int8(
    student: AnyNetwork, recipe: Recipe, out: Path, facts: dict[str, Any], seen: dict[str, Any] | None
) -> None:
    """Write a network with fake-quantized layers as an INT8 checkpoint with a model card. `student` becomes a plain
    network.

    seen: facts of its calibration; the stored ranges are those after training.
    """
    scales, found = restore(student), None
    if seen is not None:
        ranges = {name: (CODE_MAX * scale).tolist() for name, scale in scales.items()}
        found = Calibration(scales, {**seen, "ranges": ranges})
    model = network_of(student.state_dict(), student.config, int8_class(type(student.config))).eval()
    install(model, plan_module(model, recipe), recipe, "auto", {}, found)
    model.config.quantization_config.training = facts
    model.save_pretrained(out)
    write_whole(out / "README.md", card_of(model, out, str(out)))
