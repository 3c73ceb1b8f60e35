"""`Runtime`: one call of a VGGT through fused blocks, within the memory there is, replayed as a CUDA graph.

It works on the plain network's own tensors: names, state dict and saving are untouched, nothing is copied. INT8 layers
run on the operators of `vggt_int8.kernels.ops`; other layers run as they are. On a CPU there are no graphs, and the
plan does not depend on the free memory. The first call on a CPU changes one setting of the process: the GNU C library
keeps up to 256 MB of what is freed (`keep_freed_memory`, which says how to prevent it; `give_back_surplus`, which
`VGGTInt8` calls after its own modules as well).
"""

import traceback
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vggt_int8.kernels.cpu.memory import give_back_surplus, keep_freed_memory
from vggt_int8.kernels.cuda.launch import compiling
from vggt_int8.kernels.ops import FLOATS
from vggt_int8.model.vggt import VGGT, VGGTOutput
from vggt_int8.quant.backends import BackendError
from vggt_int8.runtime.graphs import GraphCache
from vggt_int8.runtime.memory import (
    GRAPH_TOKENS,
    PLANS,
    SMALLEST,
    Plan,
    Shape,
    choose_plan,
    cpu_plan,
    frames_that_fit,
    free_bytes,
)
from vggt_int8.runtime.network import run_network
from vggt_int8.runtime.watch import Watch

LowVram = bool | Literal["auto"]
REPLAYED = "fused, CUDA graph"


@dataclass(frozen=True)
class RuntimeReport:
    """How the last call ran, and why.

    mode: "fused, CUDA graph", "fused", "plain" (the network's own modules), or "none" before the first call.
    reason: why it was not fused or not replayed; empty if it was. plan: how much it worked on at a time.
    graphs: shapes of images for which a graph is held.
    """

    mode: str
    reason: str
    plan: Plan | None
    graphs: tuple[tuple[int, ...], ...]

    def __str__(self) -> str:
        lines = [self.mode + (f" ({self.reason})" if self.reason else "")]
        lines += [str(self.plan)] * (self.plan is not None)
        return "\n".join(lines + [f"CUDA graph for images {list(shape)}" for shape in self.graphs])


class _Ahead(NamedTuple):
    """A call's output, replayed before it was asked whether the model still is what `watch` saw."""

    output: VGGTOutput
    watch: Watch


class Runtime:
    """Runs `model` (which must outlive it): `Runtime(model)(images)` is `model(images)`, faster and smaller.

    low_vram: "auto" picks how much is worked on at a time from the free memory, and moves what does not fit to the
        host: kept tokens, and at last the depth and point maps, with a warning. True: always the smallest plan,
        maps on the host included. False: always the fastest one; what does not fit raises.
    """

    def __init__(self, model: VGGT, low_vram: LowVram = "auto") -> None:
        if not isinstance(low_vram, bool) and low_vram != "auto":  # 1 equals True, and is not it
            raise ValueError(f"low_vram must be True, False or 'auto', got {low_vram!r}")
        self.low_vram = low_vram
        self._model = weakref.ref(model)
        self._watch: Watch | None = None
        self._graphs = GraphCache()
        self._last: tuple[str, str, Plan | None] = ("none", "no call yet", None)
        self._compiled = False

    def __reduce__(self) -> Any:
        """Copies and pickles start anew: graphs and addresses belong to this process and this model."""
        return Runtime, (self.model, self.low_vram)

    @property
    def model(self) -> VGGT:
        model = self._model()
        if model is None:
            raise ReferenceError("the model of this Runtime is gone: keep it as long as its Runtime")
        return model

    def report(self) -> RuntimeReport:
        """How the last call ran."""
        return RuntimeReport(*self._last, tuple(key.images for key in self._graphs.captured))

    def reset(self) -> None:
        """Drop the CUDA graphs and give their memory back."""
        self._graphs.clear()
        self._watch = None

    def why_not(self, images: Tensor, query_points: Tensor | None = None) -> str | None:
        """Why this call must run on the network's own modules; None if it can run fused."""
        if self.model.training:
            return "the model is in training mode: call model.eval()"
        if (dtype := self.model.aggregator.camera_token.dtype) not in FLOATS:
            return f"its kernels compute in fp16, bf16 and fp32, not in {dtype}"
        if torch.jit.is_tracing():
            return "a tracer records the network's own modules"
        if images.device.type not in ("cpu", "cuda"):
            return f"its kernels run on CPUs and CUDA GPUs, not on {images.device.type}"
        if torch.is_autocast_enabled(images.device.type):
            return "autocast is on: load the model in the dtype wanted instead"
        watch = self._current_watch()
        if watch.needs_grad((images, query_points)):
            return "gradients are needed: use torch.no_grad() or model.requires_grad_(False)"
        if watch.offloaded:
            return f"accelerate moves weights of {watch.offloaded[0]} and others as they are needed"
        if len(watch.devices | {images.device}) > 1:
            return f"weights and images lie on several devices: {', '.join(sorted(map(str, watch.devices)))}"
        if (hooked := watch.hooked()) is not None:
            return f"{hooked} has a forward hook"
        return watch.unsupported()

    def why_not_by_itself(self, images: Tensor, query_points: Tensor | None = None) -> str | None:
        """Why nobody should expect this call to run fused without having asked for it; None if it should."""
        if (reason := self.why_not(images, query_points)) is not None:
            return reason
        assert self._watch is not None
        if self._watch.native:
            return None
        quantized = self._watch.quantized
        return "the INT8 layers do not run on the native backend" if quantized else "the model has no INT8 linears"

    def __call__(
        self,
        images: Tensor,
        query_points: Tensor | None = None,
        heads: Sequence[str] | None = None,
        frames_chunk_size: int | None = 8,
    ) -> VGGTOutput:
        """`VGGT.forward`; see there. `frames_chunk_size` is an upper bound for the dense heads.

        Results are new tensors, never overwritten by a later call. Raises `BackendError` with `why_not`'s reason, and
        `torch.OutOfMemoryError`, saying how many frames would fit, if the smallest plan does not fit either.
        """
        output, reason = self.attempt(images, query_points, heads, frames_chunk_size, self.why_not)
        if output is None:
            raise BackendError(f"the fused network cannot run this call: {reason}")
        return output

    def attempt(
        self,
        images: Tensor,
        query_points: Tensor | None,
        heads: Sequence[str] | None,
        frames_chunk_size: int | None,
        why_not: Callable[[Tensor, Tensor | None], str | None],
    ) -> tuple[VGGTOutput | None, str]:
        """The call, or None and the reason that `why_not` (this object's, or the one by itself) has against it.

        `why_not` takes a millisecond of the host, a tenth of a call of one frame. So a call like the last one, which
        was a replay, is replayed first and `why_not` asked while the GPU works; a reason then discards the replay.
        Arguments, results and what is raised are those of a call of this object.
        """
        pixels = self.model._checked_images(images)
        if query_points is not None:
            self.model._checked_query_points(query_points, pixels)
        ahead = self._replay_ahead(images, query_points, heads, frames_chunk_size)
        if (reason := why_not(images, query_points)) is not None:
            return None, reason
        if ahead is not None and ahead.watch is self._watch:
            return ahead.output, ""
        inputs, shape = self._checked(images, query_points, heads, frames_chunk_size)
        if not images.is_cuda:
            keep_freed_memory()
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device_of(images):
            outputs = self._run_within_memory(inputs, shape, frames_chunk_size)
        if not images.is_cuda:
            give_back_surplus()
        return _output(inputs, outputs), ""

    def note_plain(self, reason: str) -> None:
        """The model ran on its own modules instead."""
        self._last = ("plain", reason, None)

    def _checked(
        self,
        images: Tensor,
        query_points: Tensor | None,
        heads: Sequence[str] | None,
        frames_chunk_size: int | None,
    ) -> tuple[dict[str, Tensor], Shape]:
        """The call's tensors and what decides its work. Raises ValueError or TypeError as `VGGT.forward` does."""
        model, watch = self.model, self._watch
        assert watch is not None
        pixels = model._checked_images(images)
        names = model._checked_heads(heads, query_points)
        if frames_chunk_size is not None and frames_chunk_size < 1:
            raise ValueError(f"frames_chunk_size must be at least 1, or None for all frames; got {frames_chunk_size}")
        inputs = {"images": pixels}
        if query_points is not None:
            inputs["query_points"] = model._checked_query_points(query_points, pixels)
        batch, frames, _, height, width = pixels.shape
        number_bytes = model.aggregator.camera_token.element_size()
        points = inputs["query_points"].shape[1] if "query_points" in inputs else 0
        return inputs, Shape(batch, frames, height, width, names, number_bytes, watch.int8_attention, points)

    def _replay_ahead(
        self,
        images: Tensor,
        query_points: Tensor | None,
        heads: Sequence[str] | None,
        frames_chunk_size: int | None,
    ) -> "_Ahead | None":
        """The outputs that the call has unless something about the model has changed; None if there is no graph.

        A graph reads memory by its address, so that alone must not have changed beforehand.
        """
        watch = self._watch
        if self._last[0] != REPLAYED or watch is None or not watch.same_memory():
            return None
        inputs, shape = self._checked(images, query_points, heads, frames_chunk_size)
        if not self._has_graph(inputs["images"], shape):
            return None
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device_of(images):
            plan = _bounded(self._plan(inputs["images"], shape), frames_chunk_size)
            try:
                outputs = self._graphs.replay(inputs, shape.heads, plan)
            except torch.OutOfMemoryError:
                return None  # the call itself will meet it again, and makes room
        if outputs is None:
            return None
        self._last = (REPLAYED, "", plan)
        return _Ahead(_output(inputs, outputs), watch)

    def _current_watch(self) -> Watch:
        if self._watch is None or not self._watch.unchanged():
            self.reset()
            self._watch = Watch(self.model)
        return self._watch

    def _run_within_memory(self, inputs: dict[str, Tensor], shape: Shape, head_frames: int | None) -> dict[str, Tensor]:
        plan = self._plan(inputs["images"], shape)
        try:
            return self._run(inputs, shape, _bounded(plan, head_frames))
        except torch.OutOfMemoryError as error:
            if self.low_vram is False or plan == SMALLEST:
                raise _too_large(self.model, shape, inputs["images"].device, error) from error
        # Outside of the handler, whose exception holds on to the tensors of the failed attempt.
        self._graphs.clear()
        torch.cuda.empty_cache()
        try:
            return self._run(inputs, shape, _bounded(SMALLEST, head_frames))
        except torch.OutOfMemoryError as error:
            raise _too_large(self.model, shape, inputs["images"].device, error) from error

    def _plan(self, images: Tensor, shape: Shape) -> Plan:
        """The fastest plan that is estimated to fit."""
        if self.low_vram is True:
            return SMALLEST
        config, fastest = self.model.config, PLANS[0]
        if not images.is_cuda:
            return cpu_plan(shape, config)
        if torch.cuda.is_current_stream_capturing():
            return fastest
        graphed = replace(fastest, graph=shape.tokens(config) <= GRAPH_TOKENS)
        if self.low_vram is False or self._has_graph(images, shape):
            return graphed
        plan = choose_plan(shape, config, free_bytes(images.device) - self._graphs.held_bytes)
        if plan is not fastest and self._graphs.captured:
            self._graphs.clear()
            plan = choose_plan(shape, config, free_bytes(images.device))
        return graphed if plan is fastest else plan

    def _has_graph(self, images: Tensor, shape: Shape) -> bool:
        """Whether some call of these images and heads was captured."""
        return any(key.images == tuple(images.shape) and key.work[0] == shape.heads for key in self._graphs.captured)

    def _run(self, inputs: dict[str, Tensor], shape: Shape, plan: Plan) -> dict[str, Tensor]:
        model = self.model
        if _moves_unasked(inputs["images"], shape, plan, self.low_vram):
            warnings.warn(
                f"depth and points of {shape.frames} frames are moved to the CPU as they are made: they do not fit "
                "into the GPU memory that is free (low_vram=False raises instead)",
                RuntimeWarning,
                stacklevel=5,
            )
        self._compile(inputs, shape, plan)
        if not plan.graph:
            outputs, replayed = run_network(model, inputs, shape.heads, plan), False
            reason = _why_no_graph(inputs["images"], plan)
        else:
            outputs, replayed = self._graphs.run(
                partial(run_network, model, heads=shape.heads, plan=plan), inputs, shape.heads, plan
            )
            reason = "" if replayed else "the first call of this shape; the next one is captured"
        self._last = (REPLAYED if replayed else "fused", reason, plan)
        return outputs

    def _compile(self, inputs: dict[str, Tensor], shape: Shape, plan: Plan) -> None:
        """Before the first call on a GPU, walk through it once without our kernels, which compile meanwhile.

        cuDNN makes its plans on the way. Tracks are left out: they look up pixels, and values are arbitrary here.
        """
        images = inputs["images"]
        if self._compiled or not images.is_cuda or torch.cuda.is_current_stream_capturing():
            return
        self._compiled = True
        heads = tuple(head for head in shape.heads if head != "track")
        if heads and plan.frames == PLANS[0].frames:  # where memory is short, calls take minutes and compiling seconds
            with compiling():
                run_network(self.model, {"images": images}, heads, plan)


def _moves_unasked(images: Tensor, shape: Shape, plan: Plan, low_vram: LowVram) -> bool:
    """Whether maps are to end up on another device than the images, without the caller having asked for it."""
    moves = plan.outputs_on_host and not {"depth", "point"}.isdisjoint(shape.heads)
    return moves and images.is_cuda and low_vram is not True


def _why_no_graph(images: Tensor, plan: Plan) -> str:
    if not images.is_cuda:
        return "on the CPU"
    if torch.cuda.is_current_stream_capturing():
        return "the caller is capturing a graph of their own"
    if plan.frames < PLANS[0].frames:
        return "memory is short"
    return f"above {GRAPH_TOKENS} tokens a CUDA graph holds more memory than it saves time"


def _output(inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> VGGTOutput:
    return VGGTOutput(**{"images": inputs["images"], **outputs})  # type: ignore[arg-type]


def _bounded(plan: Plan, head_frames: int | None) -> Plan:
    return plan if head_frames is None else replace(plan, head_frames=min(plan.head_frames, head_frames))


def _too_large(
    model: VGGT, shape: Shape, device: torch.device, error: torch.OutOfMemoryError
) -> torch.OutOfMemoryError:
    traceback.clear_frames(error.__traceback__)  # which hold the tensors of the attempt that failed
    torch.cuda.empty_cache()
    images = shape.batch * shape.frames * 3 * shape.height * shape.width * 4
    free = free_bytes(device)
    needed = shape.peak_bytes(model.config, SMALLEST)
    fit = frames_that_fit(shape, model.config, free + images)
    return torch.OutOfMemoryError(
        f"{shape.batch} x {shape.frames} frames of {shape.height} x {shape.width} pixels need about "
        f"{needed / 2**30:.1f} GiB beside the model and the images, even worked on in the smallest parts, but "
        f"{free / 2**30:.1f} GiB are free: about {fit} frames of this size fit"
    )
