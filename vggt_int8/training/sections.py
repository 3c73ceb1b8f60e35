"""Config sections common to all kinds of training: data, optimizer, validation, run.

All keys are fixed and typed; `read_sections` converts TOML or JSON tables to these classes.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, get_args, get_origin, get_type_hints

from vggt_int8.listing import first_few
from vggt_int8.model.network_config import NetworkConfig
from vggt_int8.plain_data import shown

SEEDS = 1 << 8  # of runs: each has 2^40 of the 2^48 scenes of the split "train"
COMPILABLE = ("render", "blocks", "heads")
Limits = dict[str, tuple[float, float, float | None]]


@dataclass(frozen=True)
class FrameShape:
    """A frame shape and how often it is used."""

    size: tuple[int, int]  # (H, W) pixels
    weight: float = 1.0  # share of the steps, relative to the other shapes' weights
    pixel_aspect: tuple[float, float] = (1.0, 1.0)  # least and largest fx / fy of a scene; see `describe_scenes`

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"weight must be above 0, got {self.weight}")
        low, high = self.pixel_aspect
        if not 0 < low <= high:
            raise ValueError(f"pixel_aspect must be two positive numbers, the smaller first, got {[low, high]}")


@dataclass(frozen=True)
class DataConfig:
    """frames_per_step: images per process and step; all scenes of a step have the same number of `views` and the same
    shape.
    shapes: the shapes to draw from; if it is empty, every frame has `size`. Validation always uses `size` with square
        pixels, and also every shape.
    """

    size: tuple[int, int] = (112, 112)  # (H, W) pixels
    shapes: tuple[FrameShape, ...] = ()
    views: tuple[int, ...] = (2, 4, 8)
    frames_per_step: int = 192
    supersample: int = 2
    tracks: int = 0  # query points per scene, for models with a track head
    workers: int = 4  # processes that draw scenes ahead; 0: none


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and, if its rate is not 0, Muon for the blocks' matrices, with a warmup - constant - decay schedule.

    first_step, total_steps: start and end of the schedule. A run in parts has one schedule after another.
    scale_learning_rate: AdamW's rate for static scales in quantization-aware training; applied to their logarithm.
    """

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.02
    scale_learning_rate: float = 1e-3
    muon_learning_rate: float = 0.0
    muon_weight_decay: float = 0.1
    clip_norm: float = 1.0
    warmup_steps: int = 1000
    first_step: int = 0
    total_steps: int = 60000
    decay_share: float = 0.3  # of the schedule's steps, at its end; the rate falls as 1 - sqrt(progress)

    def __post_init__(self) -> None:
        if self.total_steps <= self.first_step:
            raise ValueError(f"total_steps must be above {self.first_step}, got {self.total_steps}")


@dataclass(frozen=True)
class ValidationConfig:
    """Held-out scenes 0 ... scenes - 1, each with every number of views."""

    scenes: int = 128
    views: tuple[int, ...] = (4, 8)
    every_steps: int = 4000
    frames_per_batch: int = 128


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of every run, whatever it trains."""

    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    seed: int = 0
    mixed_precision: str = "bf16"  # or "no"
    compile: tuple[str, ...] = ()  # parts to torch.compile: of `COMPILABLE`
    cuda_graph: bool = False  # replay forward and backward as CUDA graphs, on GPUs
    log_steps: int = 50

    def __post_init__(self) -> None:
        for name, (value, least, most) in self._limits().items():
            if value < least or (most is not None and value > most):
                up_to = "" if most is None else f" and at most {most}"
                raise ValueError(f"{name} must be at least {least}{up_to}, got {value}")
        if not (self.optimizer.clip_norm > 0 and all(0 <= beta < 1 for beta in self.optimizer.betas)):
            found = f"{self.optimizer.clip_norm} and {list(self.optimizer.betas)}"
            raise ValueError(f"optimizer.clip_norm must be above 0, and betas from 0 to below 1, got {found}")
        if bad := [views for views in self.data.views if self.data.frames_per_step % views]:
            raise ValueError(f"data.views {bad} must divide frames_per_step {self.data.frames_per_step}")
        if self.mixed_precision not in ("bf16", "no"):
            raise ValueError(f'mixed_precision must be "bf16" or "no", got {shown(self.mixed_precision)}')
        unknown = set(self.compile) - set(COMPILABLE)
        if unknown:
            raise ValueError(
                f"compile has {first_few(sorted(unknown), spell=shown)}; it can name {', '.join(COMPILABLE)}"
            )
        counts = Counter(shape.size for shape in self.data.shapes)
        if repeated := [list(size) for size, count in counts.items() if count > 1]:
            raise ValueError(f"data.shapes has {repeated[0]} more than once")

    def _limits(self) -> Limits:
        """Numbers with their minimum and maximum. All parts of a run are checked before the first one starts."""
        optimizer = self.optimizer
        rates = ("learning_rate", "scale_learning_rate", "muon_learning_rate")
        at_least_0 = (*rates, "weight_decay", "muon_weight_decay", "warmup_steps")
        return {
            "seed": (self.seed, 0, SEEDS - 1),
            "log_steps": (self.log_steps, 1, None),
            "validation.every_steps": (self.validation.every_steps, 1, None),
            "validation.scenes": (self.validation.scenes, 1, None),
            "validation.views": (min(self.validation.views, default=0), 2, None),
            "validation.frames_per_batch": (self.validation.frames_per_batch, 1, None),
            "data.frames_per_step": (self.data.frames_per_step, 1, None),
            "data.views": (min(self.data.views, default=0), 2, None),
            "data.supersample": (self.data.supersample, 1, None),
            "data.tracks": (self.data.tracks, 0, None),
            "data.workers": (self.data.workers, 0, None),
            "optimizer.first_step": (optimizer.first_step, 0, None),
            "optimizer.decay_share": (optimizer.decay_share, 0, 1),
            **{f"optimizer.{name}": (getattr(optimizer, name), 0, None) for name in at_least_0},
        }

    def check_sizes(self, model: NetworkConfig) -> None:
        """Raises ValueError for frames that are not whole patches of a network."""
        sizes = {"data.size": self.data.size}
        sizes |= {f"data.shapes[{index}].size": shape.size for index, shape in enumerate(self.data.shapes)}
        for name, size in sizes.items():
            if any(side < 1 or side % model.patch_size for side in size):
                raise ValueError(f"{name} {list(size)} must be multiples of the patch size {model.patch_size}")


def loss_limits(loss: Any) -> Limits:
    """Weights of a loss must not be negative."""
    return {f"loss.{entry.name}": (getattr(loss, entry.name), 0, None) for entry in fields(loss)}


def read_sections(table: Mapping[str, Any], base: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Convert a table to the dataclass `kind`, with its sections (data, optimizer, ...) as objects.

    base: section name -> object with the defaults for that section. Raises ValueError for unknown keys and wrong types.
    """
    values = dict(table)
    for name, section in base.items():
        if name in values:
            known = known_keys(_with_shapes(values[name]), type(section), f"[{name}]")
            values[name] = replace(section, **known)
    return known_keys(values, kind, "the file")


def _with_shapes(section: Any) -> Any:
    """A section's table, with its list of "shapes", if there is one, converted to `FrameShape` objects."""
    if not isinstance(section, dict) or not isinstance(section.get("shapes"), list | tuple):
        return section
    where = "[data] shapes[{}]"
    shapes = [known_keys(shape, FrameShape, where.format(i)) for i, shape in enumerate(section["shapes"])]
    for index, shape in enumerate(shapes):
        if "size" not in shape:
            raise ValueError(f"{where.format(index)} needs a size, [H, W]")
    return {**section, "shapes": tuple(FrameShape(**shape) for shape in shapes)}


def known_keys(table: Any, section: type, where: str) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ValueError(f"{where} must be a table, got {shown(table)}")
    names = [f.name for f in fields(section)]
    unknown = sorted(set(table) - set(names))
    if unknown:
        raise ValueError(f"{where} has unknown keys {first_few(unknown, spell=shown)}; it can have {', '.join(names)}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    types = get_type_hints(section)
    for key, value in values.items():
        if not _fits(value, types[key]):
            raise ValueError(
                f"{where}: {key} must be {getattr(types[key], '__name__', types[key])}, got {shown(value)}"
            )
    return values


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * (len(value) if isinstance(value, tuple) else 0)
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if kind is float:
        return type(value) in (int, float) and abs(value) < 1e300  # NaN is not less, and larger integers are no floats
    return type(value) is (get_origin(kind) or kind)
