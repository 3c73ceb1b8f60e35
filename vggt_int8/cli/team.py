"""`run` on several GPUs: one process per GPU, with the frames of the scene distributed over them.

This process is the first: it reads, reconstructs, writes and prints as on one GPU. The others load the same model and
take part in its calls (`follower.py`). They are started here for each given device, or are processes of the same
command started by a launcher (`torchrun`, `accelerate launch`).
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from vggt_int8.cli.loading import resolve_device

if TYPE_CHECKING:
    from torch import Tensor

    from vggt_int8.pretrained.int8_network import Int8Network

HOST = "127.0.0.1"
READY = "ready"
PATIENCE = timedelta(minutes=30)  # for others that load a model, or read and decode a thousand images
LAST_WORDS = 10.0  # seconds for processes to end by themselves after the call


@dataclass(frozen=True)
class Loading:
    """The model to load. device: of this process; None for the machine's first device."""

    model: str
    recipe: str | None
    backend: str
    dtype: str | None
    device: str | None


@dataclass
class Team:
    """The first process's view of the others. followers: processes started here, by device."""

    loading: Loading
    launched: bool = False
    followers: dict[str, "subprocess.Popen[str]"] = field(default_factory=dict)
    store: Any = None

    @property
    def alone(self) -> bool:
        return not (self.launched or self.followers)

    def join(self, network: "Int8Network") -> None:
        """Wait for the other processes, which load the model meanwhile. Calls of `network` are distributed from now on.

        Raises RuntimeError if one of them ended early; it has printed the reason.
        """
        if self.alone:
            return
        for name, process in self.followers.items():
            assert process.stdout is not None
            if READY not in (line.strip() for line in process.stdout):  # up to it, or to the end
                raise RuntimeError(f"the process for {name} ended with exit code {process.wait()}: see what it said")
        meet(network, self.store, rank=0, size=1 + len(self.followers))
        for name, process in self.followers.items():
            threading.Thread(target=_watch, args=(process,), name=name, daemon=True).start()
        network.set_context_parallel("first")

    def call(self, network: "Int8Network", images: "Tensor", **options: Any) -> Any:
        """`network(images, …)` with images on the host; the other processes make the same call."""
        here = images.to(network.device)
        if not self.alone:
            tell({"images": (tuple(images.shape), images.dtype), "options": on_device("cpu", options)})
            show(here.contiguous())
        return network(here, **options)


@contextmanager
def team_of(devices: Sequence[str], loading: Loading) -> Iterator[Team]:
    """The processes of the given devices, or those of a launcher. They end with the block.

    Raises ValueError for devices that cannot work together.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if len(devices) > 1:
            raise ValueError(f"a launcher gives each process its device: leave the {len(devices)} --device out")
        yield Team(loading, launched=True)
        part()
        return
    if len(devices) < 2:
        yield Team(loading)
        return
    if len(set(devices)) < len(devices) and "cpu" not in devices:
        raise ValueError(f"--device {' --device '.join(devices)}: every process needs a GPU of its own")
    if len({resolve_device(name).type for name in devices}) > 1:
        raise ValueError(f"--device {' --device '.join(devices)}: CPUs and GPUs do not share a scene")
    from torch.distributed import TCPStore

    if sys.platform == "linux":  # all are on this machine, whatever its name resolves to
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False, timeout=PATIENCE)
    team = Team(loading, store=store)
    try:
        for rank, name in enumerate(devices[1:], 1):
            place = {"rank": rank, "size": len(devices), "port": store.port}
            wanted = {**asdict(loading), "device": name, **place}
            command = [sys.executable, "-m", "vggt_int8.cli.follower", json.dumps(wanted)]
            # The follower's stdin closes when this process ends for any reason, and then the follower exits.
            team.followers[f"{name} (rank {rank})"] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        yield team
        part()
        for process in team.followers.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(LAST_WORDS)
    finally:
        for process in team.followers.values():
            process.kill()  # it writes nothing, and may wait for this process where no signal is heard
            process.wait()


def meet(network: "Int8Network", store: Any, rank: int, size: int) -> None:
    """Create the process group: with a store created here, or (None) from a launcher's environment variables."""
    import torch
    import torch.distributed as dist

    if network.device.type == "cuda":
        torch.cuda.set_device(network.device)
    backend = None if network.device.type == "cuda" else "gloo"
    place = {} if store is None else {"store": store, "rank": rank, "world_size": size}
    dist.init_process_group(backend, timeout=PATIENCE, **place)


def part() -> None:
    """Destroy the process group, after a call in which all processes took part."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def tell(word: Any) -> None:
    import torch
    import torch.distributed as dist

    dist.broadcast_object_list([word], src=0, device=torch.device("cpu"))


def hear() -> Any:
    import torch
    import torch.distributed as dist

    heard = [None]
    dist.broadcast_object_list(heard, src=0, device=torch.device("cpu"))
    return heard[0]


def show(images: "Tensor") -> "Tensor":
    """Broadcast images from the first process to all others."""
    import torch.distributed as dist

    dist.broadcast(images, src=0)
    return images


def on_device(device: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a call with tensors moved to a device."""
    import torch

    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in options.items()}


def _watch(process: "subprocess.Popen[str]") -> None:
    """Kill processes that wait for a process that died: a GPU would wait for its tensors until a timeout."""
    from vggt_int8.shards.peers import abort

    if process.wait() != 0:
        abort()


def launched_rank() -> int:
    """Rank of a process started by a launcher; otherwise 0."""
    return int(os.environ.get("RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0


def launched_device() -> str | None:
    """Device of a process started by a launcher: the GPU of its local rank; None for the machine's first, or
    its CPU.
    """
    import torch

    local = os.environ.get("LOCAL_RANK")
    if local is None or resolve_device(None).type == "cpu":
        return None
    return f"cuda:{int(local) % torch.cuda.device_count()}"
