"""How many frames fit into the memory of a GPU, computed from sizes: no weights, no GPU needed.

A call's need is the estimate that the runtime plans with (`runtime/memory.py`), plus weights, images, and what CUDA
reserves for a process. It applies to calls on the native backend in fp16.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vggt_int8.model.configs import AnyConfig
from vggt_int8.model.families import AnyNetwork, network_class
from vggt_int8.model.omega.config import VGGTOmegaConfig
from vggt_int8.model.unfilled import unfilled
from vggt_int8.quant.plan import LayerPlan
from vggt_int8.quant.quantize import prepare_module, stored_dtype
from vggt_int8.recipe import Recipe
from vggt_int8.runtime.memory import Plan, Shape, choose_plan
from vggt_int8.runtime.omega.memory import OmegaShape

# GPU memory of the CUDA context, libraries and compiled kernels, beside all tensors.
CONTEXT = 600 << 20
CARDS = (8, 12, 16, 24, 48, 80)  # GiB, as cards are sold
NUMBER = 2  # bytes: fp16
_MOST_FRAMES = 1 << 18


@dataclass(frozen=True)
class Need:
    """Bytes that one call needs on a GPU, and its plan; `fits` tells whether that is within the given memory."""

    weights: int
    images: int
    work: int
    plan: Plan
    fits: bool

    @property
    def total(self) -> int:
        return CONTEXT + self.weights + self.images + self.work

    @property
    def words(self) -> str:
        """The effect of the plan, for the user."""
        if self.plan.outputs_on_host:
            return "tokens wait in host memory, maps are moved there"
        return "tokens wait in host memory" if self.plan.tokens_on_host else "all on the GPU"


@dataclass(frozen=True)
class Question:
    """A network whose weights take `weights` bytes, on images of `size` (height, width) pixels, with global attention
    to `keyframes` key frames, or exact attention if None.

    Raises ValueError for a size that is not a multiple of the patch size.
    """

    config: AnyConfig
    weights: int
    size: tuple[int, int]
    keyframes: int | None = None

    def __post_init__(self) -> None:
        patch = self.config.patch_size
        if any(side < patch or side % patch for side in self.size):
            raise ValueError(
                f"images of {self.size[0]} x {self.size[1]} pixels: both must be multiples of {patch}, the model's "
                "patch (`run` fits photographs so)"
            )

    def need(self, frames: int, memory: int) -> Need:
        """What the fastest plan needs that runs `frames` frames in `memory` bytes of GPU memory, or the smallest plan
        if none does.
        """
        images = self._image_bytes(frames)
        free = memory - CONTEXT - self.weights - images
        shape = self._shape(frames)
        plan = choose_plan(shape, self.config, free)
        work = shape.peak_bytes(self.config, plan)
        return Need(self.weights, images, work, plan, work <= free)

    def most_frames(self, memory: int) -> int:
        """The most frames that run in `memory` bytes with the smallest plan. May be 0."""
        return _largest(_MOST_FRAMES, lambda frames: self.need(frames, memory).fits)

    def frames_on_gpu(self, memory: int) -> int:
        """The most frames that run in `memory` bytes without offloading anything to host memory."""

        def stays(frames: int) -> bool:
            need = self.need(frames, memory)
            return need.fits and not need.plan.tokens_on_host

        return _largest(_MOST_FRAMES, stays)

    def _shape(self, frames: int) -> Shape:
        keys = None if self.keyframes is None or self.keyframes >= frames else self.keyframes
        kind = OmegaShape if isinstance(self.config, VGGTOmegaConfig) else Shape
        return kind(1, frames, *self.size, heads_of(self.config), NUMBER, keyframes=keys)

    def _image_bytes(self, frames: int) -> int:
        return frames * 3 * self.size[0] * self.size[1] * 4


def _largest(most: int, holds: Callable[[int], bool]) -> int:
    """The largest number up to `most` for which a monotonic predicate holds; 0 if there is none."""
    low = 0
    while low < most:
        middle = (low + most + 1) // 2
        low, most = (middle, most) if holds(middle) else (low, middle - 1)
    return low


def heads_of(config: AnyConfig) -> tuple[str, ...]:
    """The heads that a call without query points runs."""
    fields = [field for field in config.head_fields.values() if getattr(config, field)]
    return tuple(field.removeprefix("enable_") for field in fields if field != "enable_track")


def skeleton(config: AnyConfig, recipe: Recipe | None) -> tuple[AnyNetwork, dict[str, LayerPlan]]:
    """The network on the meta device, quantized if there is a recipe, with the plan of its layers.

    Raises `RecipeError` if the recipe does not fit the network.
    """
    model: AnyNetwork = unfilled(network_class(config), config)
    return model, {} if recipe is None else prepare_module(model, recipe)


def stored_bytes(model: AnyNetwork) -> int:
    """Size of all tensors in a checkpoint, which is also their size on a GPU that computes in fp16."""
    return sum(tensor.numel() * stored_dtype(name, tensor).itemsize for name, tensor in model.state_dict().items())


def cards_with(memory_gb: Sequence[float]) -> list[tuple[float, int]]:
    """(nominal GiB, bytes) of the given GPU memory sizes, or of common ones."""
    return [(size, int(size * 2**30)) for size in memory_gb or CARDS]
