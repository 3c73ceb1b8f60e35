"""`Runtime`: runs calls of a network through fused blocks, within the available memory, replayed as CUDA graphs.

It works on the plain network's own tensors: names, state dict and saving are unaffected, and nothing is copied. INT8
layers run on the operators of `vggt_int8.kernels.ops`, other layers run as they are. On a CPU there are no graphs, and
the plan does not depend on the free memory. The first call on a CPU changes one setting of the process: glibc keeps up
to 256 MB of freed memory (`keep_freed_memory` says how to prevent it). What exceeds that is returned to the system
after every call, whether fused or not.
"""

import warnings
import weakref
from dataclasses import replace
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar, get_args

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from vggt_int8.kernels.attended import Notes, noting
from vggt_int8.kernels.cpu.memory import give_back_surplus, keep_freed_memory
from vggt_int8.kernels.cuda.launch import compiling
from vggt_int8.machine import free_gpu_bytes
from vggt_int8.model.call import Call
from vggt_int8.quant.backends import BackendError
from vggt_int8.runtime.eligibility import Eligibility
from vggt_int8.runtime.graphs import GraphCache
from vggt_int8.runtime.kernels import fused_kernels
from vggt_int8.runtime.memory import (
    GRAPH_TOKENS,
    PLANS,
    SMALLEST,
    Fallback,
    Plan,
    Shape,
    choose_plan,
    cpu_plan,
    plans_after,
    too_large,
)
from vggt_int8.runtime.network import Tensors, run_network, shape_of
from vggt_int8.runtime.report import RuntimeReport

LowVram = bool | Literal["auto"]
Mode = Literal["auto", "on", "off"]
REPLAYED = "fused, CUDA graph"
PLAIN = "PyTorch scaled_dot_product_attention"  # what attends in the network's own modules
Output = TypeVar("Output", covariant=True)


class Predicts(Protocol[Output]):
    """What type checkers need to know of a network: its output type. All networks here are `model.network.Network`s."""

    def predict(self, call: Call) -> Output: ...


class _Speculative(NamedTuple):
    """The output of a replay that started before `eligibility` was checked again."""

    output: Any
    eligibility: Eligibility


class Runtime(Generic[Output]):
    """Runs `model`, which must outlive it: `Runtime(model)(images)` gives the result of `model(images)` in less time
    and memory.

    low_vram: "auto" chooses how much to work on at a time by the free memory, and offloads what does not fit to the
        host: kept tokens first, then depth and point maps, with a warning. True always uses the smallest plan, with
        maps on the host. False always uses the fastest plan, and raises if it does not fit.
    mode: "on" runs every call fused, and raises `BackendError` if that is not possible. "auto" runs calls fused if the
        INT8 layers use the native backend and nothing rules it out, else on the network's own modules. "off" never runs
        fused.
    """

    def __init__(self, model: Predicts[Output], low_vram: LowVram = "auto", mode: Mode = "on") -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}; got {mode!r}")
        if not isinstance(low_vram, bool) and low_vram != "auto":  # 1 equals True, and is not it
            raise ValueError(f"low_vram must be True, False or 'auto', got {low_vram!r}")
        self.low_vram, self.mode = low_vram, mode
        self.model_ref = weakref.ref(model)  # weak: the model usually holds this object
        self._eligibility: Eligibility | None = None
        self._graphs = GraphCache()
        self._last = RuntimeReport("none", "no call yet", None, None)
        self._fallback: Fallback | None = None
        # The next smaller plan of the last call, if that was sharded.
        self._next: tuple[Shape, Plan, torch.device] | None = None
        self._compiled = False

    def __reduce__(self) -> Any:
        """Copies and pickles start fresh: graphs and addresses belong to this process and this model."""
        return Runtime, (self.model, self.low_vram, self.mode)

    @property
    def model(self) -> Any:
        model = self.model_ref()
        if model is None:
            raise ReferenceError("the model of this Runtime is gone: keep a reference to it")
        return model

    def report(self) -> RuntimeReport:
        """How the last call ran."""
        return replace(self._last, graphs=tuple(key.images for key in self._graphs.captured))

    def kernels(self, device_type: str) -> dict[str, str]:
        """Name of each layer -> description of its kernel in a fused call on "cpu" or "cuda".

        Layers that run as modules are left out; all do if calls of this model are not fused.
        """
        found = Eligibility(self.model)
        never = self.mode == "off" or found.unsupported() or (self.mode == "auto" and found.unasked(device_type))
        return {} if never else fused_kernels(self.model, device_type)

    def reset(self) -> None:
        """Drop the CUDA graphs and free their memory."""
        self._graphs.clear()
        self._eligibility = None

    def __call__(self, *args: Any, **kwargs: Any) -> Output:
        """`run` for the arguments of the network's `forward`, which documents them and the errors raised."""
        return self.run(self.model.checked_call(*args, **kwargs))

    def run(self, call: Call) -> Output:
        """Run one call, fused or on the network's own modules, depending on `mode`. Results are new tensors, never
        overwritten by a later call. `frames_chunk_size` is an upper bound for fused dense heads.

        Raises `BackendError` in mode "on" if the call cannot run fused, and `torch.OutOfMemoryError`, with the number
        of frames that would fit, if the smallest plan does not fit. A sharded call raises the latter at once, since the
        other processes are in the middle of theirs: all of them can `step_down` and start again.
        """
        self._next = None
        output, reason = (None, "set_runtime('off')") if self.mode == "off" else self._run_fused(call)
        if output is None:
            if self.mode == "on":
                raise BackendError(
                    f"the fused network cannot run this call: {reason}. set_runtime('auto') leaves such calls to the "
                    "network's own modules"
                )
            self._last = _report("plain", reason, None, call, {PLAIN: None})
            output = self.model.predict(call)
        if call.images.device.type == "cpu":
            give_back_surplus()
        return output

    def why_not(self, call: Call) -> str | None:
        """Why this call must run on the network's own modules; None if it can run fused."""
        if (reason := Eligibility.ruled_out(self.model, call)) is not None:
            return reason
        if self._eligibility is None or not self._eligibility.unchanged():
            self.reset()
            self._eligibility = Eligibility(self.model)
        return self._eligibility.why_not(call, unasked=self.mode == "auto")

    def _run_fused(self, call: Call) -> tuple[Any, str]:
        """The fused call, or None and the reason why it cannot run fused.

        `why_not` takes a millisecond of host time, a tenth of a call with one frame. If the last call was a replay and
        this one is like it, the graph is replayed speculatively, and `why_not` is checked while the GPU works; a reason
        then discards the replay.
        """
        speculative = self._replay_speculatively(call)
        if (reason := self.why_not(call)) is not None:
            return None, reason
        if speculative is not None and speculative.eligibility is self._eligibility:
            return speculative.output, ""
        if not call.images.is_cuda:
            keep_freed_memory()
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device_of(call.images):
            outputs = self._run_within_memory(call, self._shape(call))
        return _output(self.model.output_class, call, outputs), ""

    def _shape(self, call: Call) -> Shape:
        """What the memory of the call depends on."""
        batch, frames, _, height, width = call.images.shape
        number_bytes = self.model.aggregator.camera_token.element_size()
        points = 0 if call.query_points is None else call.query_points.shape[1]
        kind, keyframes = shape_of(self.model), call.attention.within(call.scene_frames).most_keys
        scene = 0 if call.shard is None else call.scene_frames
        return kind(batch, frames, height, width, call.heads, number_bytes, points, keyframes, scene)

    def _replay_speculatively(self, call: Call) -> _Speculative | None:
        """The call's outputs, provided that the model has not changed; None if there is no graph.

        A graph reads memory by address, so the addresses are checked beforehand.
        """
        eligibility = self._eligibility
        if self._last.mode != REPLAYED or eligibility is None or not eligibility.same_memory():
            return None
        if call.shard is not None or not self._has_graph(call):
            return None
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device_of(call.images):
            plan = self._plan(call, self._shape(call)).bounded(call.frames_chunk_size)
            try:
                with noting() as attended:
                    outputs = self._graphs.replay(_tensors(call), *_work(call), plan)
            except torch.OutOfMemoryError:
                return None  # the call itself handles it
        if outputs is None:
            return None
        self._last = _report(REPLAYED, "", plan, call, attended)
        return _Speculative(_output(self.model.output_class, call, outputs), eligibility)

    @property
    def can_step_down(self) -> bool:
        """Whether the last call could use a smaller plan. For sharded calls only."""
        return self._next is not None

    def step_down(self) -> None:
        """Free memory, and let the next call of the same shape use a smaller plan, if there is one."""
        if self._next is not None:
            self._make_room(*self._next)

    def _run_within_memory(self, call: Call, shape: Shape) -> Tensors:
        plan, device = self._plan(call, shape), call.images.device
        if self._fallback is not None and self.low_vram == "auto" and self._fallback.applies(shape, device):
            plan = self._fallback.plan
        plans = [plan] if self.low_vram is False else [plan, *plans_after(plan)]
        if call.shard is not None and len(plans) > 1:
            self._next = shape, plans[1], device
        while True:
            try:
                return self._run(call, shape, plans[0].bounded(call.frames_chunk_size))
            except torch.OutOfMemoryError as error:
                if len(plans) == 1:
                    raise too_large(shape, self.model.config, device, error) from error
                if call.shard is not None:
                    raise
            # Outside the handler, whose exception keeps the tensors of the failed attempt alive.
            del plans[0]
            self._make_room(shape, plans[0], device)

    def _make_room(self, shape: Shape, plan: Plan, device: torch.device) -> None:
        self._graphs.clear()
        torch.cuda.empty_cache()
        self._fallback = Fallback.of(shape, plan, device)

    def _plan(self, call: Call, shape: Shape) -> Plan:
        """The fastest plan that is estimated to fit."""
        if self.low_vram is True:
            return SMALLEST
        config, fastest, images = self.model.config, PLANS[0], call.images
        if not images.is_cuda:
            return cpu_plan(shape, config)
        if torch.cuda.is_current_stream_capturing():
            return replace(fastest, in_pieces=False)
        graphed = fastest.graphed() if shape.tokens(config) <= GRAPH_TOKENS and call.shard is None else fastest
        if self.low_vram is False or (call.shard is None and self._has_graph(call)):
            return graphed
        plan = choose_plan(shape, config, free_gpu_bytes(images.device))
        if plan is not fastest and self._graphs.captured:
            self._graphs.clear()
            plan = choose_plan(shape, config, free_gpu_bytes(images.device))
        return graphed if plan is fastest else plan

    def _has_graph(self, call: Call) -> bool:
        """Whether there is a graph for these images, heads and attention, under any plan."""
        images, work = tuple(call.images.shape), _work(call)
        return any(key.images == images and key.work[: len(work)] == work for key in self._graphs.captured)

    def _run(self, call: Call, shape: Shape, plan: Plan) -> Tensors:
        model = self.model
        if _moves_unasked(call.images, shape, plan, self.low_vram):
            warnings.warn(
                f"depth and points of {shape.frames} frames are moved to the CPU as they are made: they do not fit "
                "into the GPU memory that is free (low_vram=False raises instead)",
                RuntimeWarning,
                stacklevel=5,
            )
        self._compile(call, plan)

        def run(tensors: Tensors) -> Tensors:
            held = replace(call, images=tensors["images"], query_points=tensors.get("query_points"))
            return run_network(model, held, plan)

        with noting() as attended:
            if plan.graph:
                outputs, replayed = self._graphs.run(run, _tensors(call), *_work(call), plan)
                reason = "" if replayed else "the first call of this shape; the next one is captured"
            else:
                outputs, replayed = run_network(model, call, plan), False
                reason = _why_no_graph(call, plan)
        self._last = _report(REPLAYED if replayed else "fused", reason, plan, call, attended)
        return outputs

    def _compile(self, call: Call, plan: Plan) -> None:
        """Before the first call on a GPU, run once without launching our kernels, which compile meanwhile.

        cuDNN makes its plans in the same pass. Tracks are left out: they index pixels by values, which are arbitrary
        here.
        """
        if self._compiled or not call.images.is_cuda or torch.cuda.is_current_stream_capturing():
            return
        self._compiled = True
        heads = tuple(head for head in call.heads if head != "track")
        if heads and plan.frames == PLANS[0].frames:  # where memory is short, calls take minutes and compiling seconds
            read = self.model.layers_read(heads)
            with compiling():
                alone = None if call.shard is None else call.shard.rehearsal()
                run_network(
                    self.model, replace(call, query_points=None, heads=heads, layers_read=read, shard=alone), plan
                )


def _report(mode: str, reason: str, plan: Plan | None, call: Call, attended: Notes) -> RuntimeReport:
    shards, kernels = () if call.shard is None else call.shard.counts, tuple(attended)
    attention = call.attention.within(call.scene_frames)
    return RuntimeReport(mode, reason, plan, attention, shards=shards, attention_kernels=kernels)


def _tensors(call: Call) -> Tensors:
    """The tensors of a call that a graph reads."""
    points = {} if call.query_points is None else {"query_points": call.query_points}
    return {"images": call.images, **points}


def _work(call: Call) -> tuple[object, ...]:
    """Everything else in a call that determines the work of a graph."""
    return call.heads, call.attention.within(call.scene_frames), call.descriptors


def _moves_unasked(images: Tensor, shape: Shape, plan: Plan, low_vram: LowVram) -> bool:
    """Whether maps are moved to another device than the images without the caller's request."""
    moves = plan.outputs_on_host and not {"depth", "point"}.isdisjoint(shape.heads)
    return moves and images.is_cuda and low_vram is not True


def _why_no_graph(call: Call, plan: Plan) -> str:
    if not call.images.is_cuda:
        return "on the CPU"
    if call.shard is not None:
        return "its frames are sharded over processes, which synchronize on the host"
    if torch.cuda.is_current_stream_capturing():
        return "the caller is capturing a graph"
    if plan.frames < PLANS[0].frames:
        return "memory is short"
    return f"above {GRAPH_TOKENS} tokens a CUDA graph holds more memory than it saves time"


def _output(kind: type[ModelOutput], call: Call, outputs: Tensors) -> Any:
    return kind(**{"images": call.images, **outputs})
