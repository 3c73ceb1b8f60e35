"""Many scenes, many processes, one folder of results: scheduling, progress and failures.

Processes share only that folder (`Board`), on one machine or on several. They claim scenes by atomic files that they
keep fresh (`Claims`); a scene whose holder is gone is taken over. A result appears as a whole, by one rename, so claims
only save work and correctness does not depend on them: if two processes do the same scene, the second finds it done.

`run_worker` reads ahead, computes, and writes behind; `supervise` keeps such processes alive. Neither imports PyTorch:
a `Stages` object defines what is read, computed and written.
"""

from vggt_int8.batch.board import Board, NoPlace, SceneState
from vggt_int8.batch.claims import Claims
from vggt_int8.batch.scenes import SceneFolder, find_scenes
from vggt_int8.batch.worker import BadScene, Broken, Stages, run_worker

__all__ = [
    "BadScene",
    "Board",
    "Broken",
    "Claims",
    "NoPlace",
    "SceneFolder",
    "SceneState",
    "Stages",
    "find_scenes",
    "run_worker",
]
