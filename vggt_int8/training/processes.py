"""The processes that train together."""

import os

from accelerate import Accelerator


def make_accelerator() -> Accelerator:
    """accelerate's view of all processes of a launcher, which computes no autocast of its own.

    Raises RuntimeError if there are more than it counts: each would train alone, and write to the same folder.
    """
    accelerator, started = Accelerator(mixed_precision="no"), int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        raise RuntimeError(
            f"{started} processes were started, and accelerate makes use of {accelerator.num_processes}: on CPUs start "
            "them by torchrun with ACCELERATE_USE_CPU=true"
        )
    return accelerator
