"""`Peers`: processes that work on one call together, and their communication.

Tensors are exchanged through the device's own backend (NCCL on GPUs, gloo on CPUs), Python objects over gloo on the
hosts. Before every exchange of tensors, all hosts synchronize for some hundred microseconds, which is hidden while a
GPU is behind its host. Nothing is sent before all have arrived, so a process whose call fails makes the others fail at
once: otherwise they would wait for its tensors until a timeout, on a GPU in a kernel that only an abort ends.
"""

import os
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

END, FAILED = -1, -2  # synchronization points of a call; others are the sizes of the next exchange
_NOWHERE = -(2**62)
_WANTED = "make it by init_process_group() without a backend, or with backend='cpu:gloo,cuda:nccl'"


class PeerFailed(RuntimeError):
    """The call failed in another process. All processes are synchronized again afterwards, and can continue."""


class LostProcess(RuntimeError):
    """Another process no longer responds: all must be restarted."""


class Peers:
    """This process and its peers, all of which create this object at the same time and in the same order.

    group: of `torch.distributed`, None for all processes. It also determines timeouts.
    device: where the tensors are.

    Raises RuntimeError if torch.distributed is unavailable or not initialized, or if the group does not support the
    device; ValueError in a process outside the group.
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
        """Wait for all processes to reach `place`, a number that says what comes next; returns whether it is `END`.

        place: None for wherever the others are.

        Raises `PeerFailed` if a call failed or a process is at another place, `LostProcess` if one does not arrive.
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
        """Gather an object from every process, by rank. Raises `LostProcess` if one does not respond."""
        words: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(words, word, group=self._hosts)
        except RuntimeError as error:
            raise self._lost(error) from error
        return words

    def exchange_(self, whole: Tensor, counts: Sequence[int], to: Collection[int]) -> None:
        """Fill `whole` [B, sum(counts), ...] on the ranks in `to`, in place; each rank's own part is already there.

        whole: contiguous, on the peers' device. Other ranks only read their own part.
        counts: length of each rank's part, in the order of ranks.
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
        """Free what the caller's group did not provide."""
        if self._own_hosts:
            dist.destroy_process_group(self._hosts)

    def _lost(self, error: RuntimeError) -> LostProcess:
        """The error to raise; on a GPU this also ends kernels that wait for a lost process."""
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
    """Abort the kernels of a group that wait on this process's GPU; the group is unusable afterwards. None: the default
    group.
    """
    group = group or dist.group.WORLD
    if group is not None:
        group.abort()


def _backend_for(device: torch.device) -> str:
    """ "nccl" or "gloo". Raises RuntimeError, saying what is missing."""
    if not dist.is_available():
        raise RuntimeError("this build of PyTorch has no torch.distributed: frames cannot be sharded over processes")
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
    raise RuntimeError(f"frames cannot be sharded over processes on {device}: {missing}")
