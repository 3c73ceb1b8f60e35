"""`Peers`: processes that work on one call together, and how they talk.

Tensors go over the device's own backend (NCCL on GPUs, gloo on CPUs), words over gloo on the hosts.
Before every exchange of tensors all hosts meet for some hundred microseconds, which a GPU that is behind its host does
not notice. Nothing is sent before all have come, so that a process whose call fails takes the others with it at once:
without that they would wait for its tensors until a timeout, on a GPU in a kernel that nothing but an abort ends.
"""

import os
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

END, FAILED = -1, -2  # places in a call where hosts meet, beside the sizes of what they are about to exchange
_NOWHERE = -(2**62)
_WANTED = "make it by init_process_group() without a backend, or with backend='cpu:gloo,cuda:nccl'"


class PeerFailed(RuntimeError):
    """The call failed in another process. All processes are in step again afterwards, and can go on."""


class LostProcess(RuntimeError):
    """Another process does not answer any more: all must be started again."""


class Peers:
    """This process and those it works with, all of which make one at the same time, in the same order.

    group: of `torch.distributed`, None for all processes. device: where the tensors are. How long one waits for the
    others is a matter of the group.

    Raises RuntimeError where torch.distributed is not there or not initialised, or the group knows nothing of the
    device; ValueError outside of the group.
    """

    def __init__(self, group: "ProcessGroup | None", device: torch.device) -> None:
        backend = _backend_for(device)
        if group is not None and dist.get_rank(group) < 0:
            raise ValueError(f"the process of rank {dist.get_rank()} is not of the group that was given")
        self.device, self.ranks = device, dist.get_process_group_ranks(group)
        self.rank, self.size = dist.get_rank(group), len(self.ranks)
        found = dict(pair.split(":") for pair in dist.get_backend_config(group).split(","))
        if found.get(device.type) != backend:
            raise RuntimeError(f"the process group has no {backend} for {device.type}, but {found}: {_WANTED}")
        self._data, self._hosts, self._own_hosts = group, group, found.get("cpu") != "gloo"
        if self._own_hosts:
            if self.size < dist.get_world_size():  # those outside would have to make it, too
                raise RuntimeError(f"the process group has no gloo for hosts, but {found}: {_WANTED}")
            self._hosts = dist.new_group(backend="gloo")

    def meet(self, place: int | None) -> bool:
        """Wait for all to come to `place`, a number that says what is next; whether that is `END`.

        None: wherever the others are.

        Raises `PeerFailed` if a call failed or a process is somewhere else, `LostProcess` if one does not come.
        """
        place, other = (_NOWHERE, _NOWHERE) if place is None else (place, -place)
        answers = torch.tensor([place == FAILED, place, other], dtype=torch.int64)
        try:
            dist.all_reduce(answers, dist.ReduceOp.MAX, group=self._hosts)
        except RuntimeError as error:
            raise self._lost(error) from error
        failed, most, least = answers.tolist()
        if failed:
            raise PeerFailed("the call failed in another process")
        if most != -least:
            raise PeerFailed(
                f"processes are at different places of a call: about to exchange {-least} and {most} bytes"
            )
        return bool(most == END)

    def tell(self, word: Any) -> list[Any]:
        """What all say, by rank. Raises `LostProcess` if one does not answer."""
        words: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(words, word, group=self._hosts)
        except RuntimeError as error:
            raise self._lost(error) from error
        return words

    def exchange_(self, whole: Tensor, counts: Sequence[int], to: Collection[int]) -> None:
        """Fill whole [B, sum(counts), ...] of the ranks in `to`, in place; each rank's own part of it is there already.

        whole: contiguous, on the peers' device. counts: of rank r, whose part follows those of the ranks before it.
        Elsewhere than in `to` the own part alone is read.
        """
        starts = [sum(counts[:rank]) for rank in range(self.size)]
        parts = [slice(start, start + count) for start, count in zip(starts, counts, strict=True)]
        mine, receiving, operations = parts[self.rank], self.rank in to, []
        for peer in range(self.size):
            for scene in whole if peer != self.rank else ():
                if counts[self.rank] and peer in to:
                    operations.append(dist.P2POp(dist.isend, scene[mine], self.ranks[peer], self._data))
                if counts[peer] and receiving:
                    operations.append(dist.P2POp(dist.irecv, scene[parts[peer]], self.ranks[peer], self._data))
        if not operations:
            return
        try:
            for work in dist.batch_isend_irecv(operations):
                work.wait()
        except RuntimeError as error:
            raise self._lost(error) from error

    def close(self) -> None:
        """Give back what the caller's group did not have."""
        if self._own_hosts:
            dist.destroy_process_group(self._hosts)

    def _lost(self, error: RuntimeError) -> LostProcess:
        """What to raise; on a GPU also ends kernels that wait for a process that is gone."""
        if self.device.type == "cuda":
            abort(self._data)
        first = (str(error).splitlines() or [""])[0]
        return LostProcess(
            f"rank {self.rank} of {self.size} lost another process, or waited too long for it: see what that one said, "
            f"and start all again ({first:.200})"
        )

    def __reduce__(self) -> Any:
        raise TypeError("a group of processes belongs to them, and cannot be copied or saved")


def abort(group: "ProcessGroup | None" = None) -> None:
    """End what a group's kernels wait for on this process's GPU; the group is of no use after that. None: of all."""
    group = group or dist.group.WORLD
    if group is not None:
        group.abort()


def _backend_for(device: torch.device) -> str:
    """ "nccl" or "gloo". Raises RuntimeError, saying what is missing."""
    if not dist.is_available():
        raise RuntimeError("this build of PyTorch has no torch.distributed: frames cannot be shared out over processes")
    if not dist.is_initialized():
        launched = " (this process has been started by a launcher)" if "RANK" in os.environ else ""
        raise RuntimeError(
            f"there is no process group yet{launched}: call torch.distributed.init_process_group() first, in processes "
            "that torchrun or `accelerate launch` started"
        )
    if device.type == "cpu":
        return "gloo"
    if device.type == "cuda" and dist.is_nccl_available():
        return "nccl"
    missing = "this build of PyTorch has no NCCL" if device.type == "cuda" else "there is no backend for it"
    raise RuntimeError(f"frames cannot be shared out over processes on {device}: {missing}")
