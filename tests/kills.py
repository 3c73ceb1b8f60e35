"""Ends a piece of work right before any of its steps that change a folder."""

import os
import traceback
from collections.abc import Callable
from typing import Any

import torch

STEPS = ("rename", "replace", "unlink", "remove", "mkdir", "rmdir")


def killed_before(moment: int, work: Callable[[], object]) -> bool:
    """Do the work in a process that is ended before its step `moment`, counted from 0, that changes a folder.

    False: it came to its end before. Steps are calls of the `STEPS` of os, which all of pathlib and shutil go through.
    """
    process = os.fork()
    if process == 0:
        torch.set_num_threads(1)  # the parent's threads are not here
        made = 0

        def watched(step: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                nonlocal made
                if made == moment:
                    os._exit(9)
                made += 1
                return step(*args, **kwargs)

            return run

        for name in STEPS:
            setattr(os, name, watched(getattr(os, name)))
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code in (0, 9)
    return code == 9
