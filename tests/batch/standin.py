"""A worker whose scenes take milliseconds: `python standin.py OUT SCENES TOKEN RETRIES`. What a scene's folder holds
says what goes wrong with it. Each computed scene is a line of OUT/../computed.
"""

import errno
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from vggt_int8.batch import Board, Broken, Claims, NoPlace, SceneFolder, find_scenes, run_worker
from vggt_int8.batch.supervise import NO_PLACE, RESTART, end_with_parent
from vggt_int8.files import staged_folder, write_json


class Standin:
    def __init__(self, out: Path, seconds: float = 0.01) -> None:
        self.out, self.seconds = out, seconds

    def read(self, scene: SceneFolder) -> Any:
        time.sleep(self.seconds)
        if (scene.images / "unreadable").exists():
            raise ValueError(f"{scene.name} has no images")
        return scene.name

    def compute(self, scene: SceneFolder, item: Any) -> Any:
        time.sleep(self.seconds)
        if (scene.images / "killer").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if (scene.images / "breaks_gpu").exists():
            raise Broken("an illegal memory access was encountered")
        if (scene.images / "once").exists():
            (scene.images / "once").rename(scene.images.parent / f"{scene.name}.gone")
            raise RuntimeError("out of memory, this once")
        if (scene.images / "away").exists():
            self.out.rename(self.out.parent / "away")
        if (scene.images / "never").exists():
            raise RuntimeError("always out of memory")
        with (self.out.parent / "computed").open("a") as file:
            file.write(f"{scene.name}\n")
        return item

    def write(self, scene: SceneFolder, result: Any) -> None:
        time.sleep(self.seconds)
        if (scene.images.parent / "full").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.out / scene.name))
        with staged_folder(self.out / scene.name, entries=("big", "report.json")) as folder:
            (folder / "big").write_bytes(os.urandom(4096))
            write_json(folder / "report.json", {"scene": result})


def main() -> None:
    out, scenes, token, retries = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    end_with_parent()
    board = Board(out, find_scenes(scenes), retries)
    board.open({"standin": True})
    with Claims(board.claims_folder, token, heartbeat=0.1, stale_after=1.5) as claims:
        try:
            run_worker(board, claims, Standin(out), poll=0.02)
        except Broken:
            sys.exit(RESTART)
        except NoPlace:
            sys.exit(NO_PLACE)


if __name__ == "__main__":
    main()
