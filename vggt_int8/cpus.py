"""The number of CPUs available to this process. Without PyTorch, which a batch's supervisor never imports."""

import functools
import math
import os
from pathlib import Path


def cores() -> int:
    """CPUs that this process may use at once, by its affinity mask and its quota."""
    mask = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(mask, quota() or mask)


@functools.cache
def quota(root: Path = Path("/")) -> int | None:
    """CPU quota of this process's control group, rounded up; None without a limit. Read once.

    Containers are limited this way (`docker run --cpus`, Kubernetes), which neither the number of CPUs nor the affinity
    mask shows. The smallest limit of all enclosing groups applies. `root`: where /proc and /sys are.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux, or no /proc
        return None
    limits = []
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        group = mount / path.lstrip("/")
        # A container may see its own group as the root of the mount, under the name that the host has for it.
        folders = [folder for folder in (group, *group.parents) if folder.is_relative_to(mount)]
        limits += [limit for folder in folders for limit in _limit(folder)]
    return max(1, math.ceil(min(limits))) if limits else None


def _limit(folder: Path) -> list[float]:
    """The CPUs that a group may use by its own files, of version 2 or 1: one number, or none if it has no limit."""
    try:
        if (folder / "cpu.max").exists():
            most, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        else:
            most, period = (
                (folder / name).read_text(encoding="utf-8") for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            )
        return [int(most) / int(period)] if most != "max" and int(most) > 0 and int(period) > 0 else []
    except (OSError, ValueError):  # a group without this controller
        return []
