"""An additional process of `vggt-int8 run`: `python -m vggt_int8.cli.follower WANTED`, or a process of a launcher.

It loads the model, takes part in one call, and writes nothing. Errors of the call are reported by the first process.
"""

import json
import sys
from typing import Any

import typer

from vggt_int8.batch.supervise import end_with_parent
from vggt_int8.cli import console
from vggt_int8.cli.guard import guarded
from vggt_int8.cli.loading import load_model
from vggt_int8.cli.team import HOST, PATIENCE, READY, Loading, hear, meet, on_device, part, show
from vggt_int8.interrupts import heeded


def follow_first(loading: Loading, store: Any = None, rank: int = 0, size: int = 0) -> None:
    """Load the model, take part in one call, and exit. Errors of the call are reported by the first process."""
    import torch

    console.settings.quiet = True
    network = load_model(
        loading.model, recipe=loading.recipe, backend=loading.backend, device=loading.device, dtype=loading.dtype
    )
    if store is not None:
        print(READY, flush=True)
    meet(network, store, rank, size)
    try:
        network.set_context_parallel("first")
        told = hear()
        shape, dtype = told["images"]
        images = show(torch.empty(shape, dtype=dtype, device=network.device))
        with torch.inference_mode():
            network(images, **on_device(network.device, told["options"]))
        part()
    except (RuntimeError, ValueError, FloatingPointError) as error:  # a lost or failed peer is a RuntimeError, too
        raise typer.Exit(1) from error


def main() -> None:
    found = json.loads(sys.argv[1])
    place = {name: found.pop(name) for name in ("rank", "size")}
    port, loading = found.pop("port"), Loading(**found)

    def work() -> None:
        from torch.distributed import TCPStore

        follow_first(loading, TCPStore(HOST, port, is_master=False, timeout=PATIENCE), **place)

    with heeded():
        end_with_parent()
        try:
            guarded(work)()
        except typer.Exit as ended:
            sys.exit(ended.exit_code)


if __name__ == "__main__":
    main()
