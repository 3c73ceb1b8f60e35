"""`ContextParallel`: context parallelism over the frames of a scene, one process per GPU.

Every process makes the same calls with the same images, works on its own frames, and exchanges with the others what
global attention needs (`vggt_int8.shards`). A call that fails in one process fails in all of them, and they can
continue afterwards; if a process is lost, the others raise instead of waiting.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor

from vggt_int8.model.call import OF_OWN_FRAMES, Call
from vggt_int8.shards import FrameShard, LostProcess, PeerFailed, Peers, share_out
from vggt_int8.shards.peers import END, FAILED

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from vggt_int8.pretrained.int8_network import Int8Network

Outputs = Literal["all", "first", "own"]
OF_THE_SCENE = frozenset({"text_alignment_embedding", "text_alignment_token"})  # of no frame
_REFUSED = "refused"  # beside what a process asks for: why it asks for nothing
PIECE = 8  # frames of each process in one message: maps may wait on the host, and GPUs exchange what is on them

T = TypeVar("T")


class ContextParallel:
    """Makes the calls of `model` together with its copies in other processes. See `Parallel.set_context_parallel`."""

    def __init__(self, model: "Int8Network", outputs: Outputs, group: "ProcessGroup | None") -> None:
        self.outputs = outputs
        self.peers = Peers(group, model.device)
        self._agree(_facts(model) | {"outputs": outputs})

    def __reduce__(self) -> Any:
        """Copies and pickles of the model make their calls alone."""
        return type(None), ()

    def run(self, model: "Int8Network", call: Call, checked: bool) -> Any:
        """`model`'s output for a call that all processes make, for all frames or its own, depending on `outputs`.

        Raises what the network raises here; `PeerFailed` if another process failed or the calls differ; `LostProcess`
        if a process is lost; ValueError for calls that cannot be sharded.
        """
        with self.asking():
            self._check(model, call)
            shard = FrameShard(self.peers, self.peers.rank, share_out(call.images.shape[1], self.peers.size))
            own = replace(call, images=call.images[:, shard.own], shard=shard)
            asked = _asked(model, call, own, checked)
        self._agree(asked)
        output = self._run_own(model, own, checked)
        return self._together(lambda: self._collect(model, call, shard, output))

    def _run_own(self, model: "Int8Network", own: Call, checked: bool) -> Any:
        """The output for this process's frames, None if it has none. If memory runs out, all processes start again with
        smaller plans. Raises as `_together` does.
        """
        at_work = own.images.shape[1] > 0
        while True:
            try:
                return self._together((lambda: model.run_here(own, checked)) if at_work else None)
            except LostProcess:
                raise
            except Exception as error:
                if not self._can_do_with_less(model, error):
                    raise
            # Outside the handler, whose exception keeps the tensors of the failed attempt alive.
            if at_work:
                model.runtime.step_down()

    def _can_do_with_less(self, model: "Int8Network", error: Exception) -> bool:
        """Whether the only failures are out of memory, in processes that can use smaller plans. error: raised here."""
        failed = not isinstance(error, PeerFailed)
        can = isinstance(error, torch.OutOfMemoryError) and model.runtime.can_step_down
        answers = [can for failed, can in self.peers.tell((failed, can)) if failed]
        return bool(answers) and all(answers)

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Wraps the part of a call before the processes synchronize: if it raises, the others raise `PeerFailed`."""
        try:
            yield
        except Exception as error:  # whatever it is, the others wait for this process
            self.peers.tell({_REFUSED: f"{type(error).__name__}: {error}"})
            raise

    def _check(self, model: "Int8Network", call: Call) -> None:
        """Raise ValueError for a call that cannot be sharded."""
        images, device = call.images, self.peers.device
        if images.device != device:
            raise ValueError(
                f"images are on {images.device}, but frames were shared out when the model was on {device}: move both "
                "there, or call set_context_parallel() again"
            )
        if model.training or (torch.is_grad_enabled() and any(p.requires_grad for p in model.parameters())):
            raise ValueError("shared out frames give no gradients: call model.eval(), and within torch.no_grad()")

    def _together(self, work: Callable[[], T] | None) -> T | None:
        """The result of `work` if it succeeds in all processes; None if this process has no work. Raises its error, or
        `PeerFailed`.
        """
        error: Exception | None = None
        result = None
        try:
            if work is not None:
                result = work()
            while not self.peers.meet(END if work is not None else None):
                pass
        except LostProcess:
            raise
        except PeerFailed as failed:
            error = failed
        except Exception as own:  # whatever it is, the others wait for this process
            error = own
            with suppress(PeerFailed):
                self.peers.meet(FAILED)
        own_error = None if error is None or isinstance(error, PeerFailed) else f"{type(error).__name__}: {error}"
        words = self.peers.tell(own_error)
        try:
            if own_error is None:
                _raise_for(words)
            if error is not None:
                raise error
            return result
        finally:
            error = None  # break the reference cycle through its traceback, which keeps tensors alive

    def _agree(self, facts: dict[str, Any]) -> None:
        """Raise `PeerFailed` in all processes unless all state the same facts, and if one of them raised while
        `asking`.
        """
        words = self.peers.tell(facts)
        _raise_for([word.get(_REFUSED) for word in words])
        for name in facts:
            said = {repr(word.get(name)): rank for rank, word in reversed([*enumerate(words)])}
            if len(said) > 1:
                by_rank = sorted(said.items(), key=itemgetter(1))
                told = ", ".join(f"{value:.200} on rank {rank}" for value, rank in by_rank)
                raise PeerFailed(f"all processes must do the same, but {name} differs: {told}")

    def _collect(self, model: "Int8Network", call: Call, shard: FrameShard, output: Any) -> Any:
        """The output of a call, gathered from all processes."""
        counts, own = shard.counts, {} if output is None else dict(output)
        kinds = {name: (t.shape, t.dtype) for name, t in own.items() if name != "images"}
        kinds = self.peers.tell(kinds)[0]  # which a process without frames does not know
        receiving: list[int] = {"all": [*range(len(counts))], "first": [0], "own": []}[self.outputs]
        whole = shard.rank in receiving
        idle = [rank for rank, count in enumerate(counts) if not count]
        fields = {"images": call.images if whole else call.images[:, shard.own]}
        for name, (shape, dtype) in kinds.items():
            mine = own.get(name)
            if mine is None:
                mine = torch.empty(shape[0], 0, *shape[2:], dtype=dtype, device=self.peers.device)
            if name in OF_OWN_FRAMES:
                fields[name] = self._gather(mine, counts, receiving)
                continue
            mine = self._gather(mine, (shape[1], *[0] * (len(counts) - 1)), idle)
            fields[name] = mine if whole or name in OF_THE_SCENE else mine[:, shard.own]
        return model.output_class(**fields)

    def _gather(self, mine: Tensor, counts: Sequence[int], to: Sequence[int]) -> Tensor:
        """Parts [B, counts[rank], ...] -> the whole [B, sum(counts), ...] on the ranks in `to`; the others keep their
        part.

        The result is on the host if the own part is.
        """
        peers = self.peers
        if not to:
            return mine
        starts = [sum(counts[:rank]) for rank in range(peers.size)]
        receiving, shape = peers.rank in to, (len(mine), sum(counts), *mine.shape[2:])
        whole = mine.new_empty(shape) if receiving else mine
        for first in range(0, max(counts), PIECE):
            at_once = [min(max(count - first, 0), PIECE) for count in counts]
            piece = mine.new_empty(len(mine), sum(at_once), *mine.shape[2:], device=peers.device)
            parts = piece.split(at_once, dim=1)
            if at_once[peers.rank]:
                parts[peers.rank].copy_(mine[:, first : first + at_once[peers.rank]])
            peers.meet(piece.nbytes)
            peers.exchange_(piece, at_once, to)
            for start, part in zip(starts, parts if receiving else (), strict=False):
                whole[:, start + first : start + first + part.shape[1]] = part
        return whole


class Parallel:
    """Mixin for loadable networks: context parallelism."""

    _context_parallel: ContextParallel | None = None

    def set_context_parallel(
        self, outputs: Outputs | Literal["off"] = "all", group: "ProcessGroup | None" = None
    ) -> None:
        """Shard the frames of every following call over the processes of a group, one GPU each ("off": stop sharding).

        All processes must load the same model, call this, and then call the model with the same arguments, all frames
        included. Each works on its own frames, and in global attention sees the keys and values of all; results equal
        those of one GPU up to the order of sums. With fewer frames than processes, the last ones wait.

        outputs: what a call returns. "all": results for all frames in every process; "first": for all frames on rank 0
            and for their own frames on the others; "own": for their own frames, which are then `images` of the output.
        group: an initialized group of `torch.distributed`; None for all processes. Hosts communicate through it, too,
            so it needs gloo beside NCCL, which is PyTorch's default.

        A call that raises in one process raises `PeerFailed` in the others; a lost process raises `LostProcess` in the
        others. Raises RuntimeError without torch.distributed, or without NCCL for GPUs, `PeerFailed` if the models
        differ, and ValueError for invalid values.
        """
        if outputs not in (*get_args(Outputs), "off"):
            raise ValueError(f"outputs must be one of {', '.join(get_args(Outputs))}, or off; got {outputs!r:.60}")
        wanted = None if outputs == "off" else ContextParallel(cast("Int8Network", self), outputs, group)
        previous, self._context_parallel = self._context_parallel, wanted
        if previous is not None:
            previous.peers.close()

    def asking(self) -> AbstractContextManager[None]:
        """`ContextParallel.asking`, if calls are sharded."""
        return nullcontext() if self._context_parallel is None else self._context_parallel.asking()


def _raise_for(errors: Sequence[str | None]) -> None:
    """Raise `PeerFailed` for the first rank that reports an error."""
    for rank, error in enumerate(errors):
        if error:
            raise PeerFailed(f"the call failed in the process of rank {rank} of {len(errors)}: {error}")


def _facts(model: "Int8Network") -> dict[str, Any]:
    """What all processes must have in common."""
    quantization: Any = getattr(model.config, "quantization_config", None)
    return {
        "torch": torch.__version__,
        "model": type(model).__name__,
        "dtype": model.dtype,
        "recipe": None if quantization is None else quantization.recipe,
        "weights (checksum)": _checksum(chain(model.parameters(), model.buffers())),
    }


def _checksum(tensors: Iterable[Tensor]) -> int:
    """Checksum of the first values of each tensor."""
    found = 0
    for tensor in tensors:
        found = zlib.crc32(tensor.detach().flatten()[:64].cpu().view(torch.uint8).numpy().tobytes(), found)
    return found


def _asked(model: "Int8Network", call: Call, own: Call, checked: bool) -> dict[str, Any]:
    """The parts of a call that must agree, since all processes must exchange the same tensors in the same order."""
    runtime, points = model.runtime, call.query_points
    fused = runtime.mode != "off" and runtime.why_not(own) is None
    return {
        "images": (tuple(call.images.shape), call.images.dtype),
        "query_points": None if points is None else (tuple(points.shape), _checksum([points])),
        "heads": call.heads,
        "attention": call.attention,
        "descriptors": call.descriptors,
        "check_finite": checked,
        "the runtime": "fused" if fused else "plain",
    }
