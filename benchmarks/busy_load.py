"""Loading and quantizing VGGT-1B on a CPU, alone and beside processes that want its cores.

    python benchmarks/busy_load.py [--threads 2] [--busy 0 2] [--repeats 3] [--model FOLDER] [--out FILE]

Without --model, an fp32 checkpoint of VGGT-1B's sizes with random weights is made in a temporary folder (5 GB). Each
load is a process of its own, after one that reads the file into the page cache. The others only count, and end with it.
Shown are the wall-clock time and what does not depend on the neighbours: processor time, peak of anonymous memory, and
a digest of all tensors, which is the same in every row. One JSON line per load.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from vggt_int8 import VGGT, VGGTConfig, VGGTInt8, cpus
from vggt_int8.export.report import installed_versions
from vggt_int8.files import append_json_line

LONGEST = 600  # seconds of a load, and of a neighbour
COUNT_UP = f"import time; end = time.time() + {LONGEST}\nwhile time.time() < end: pass"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2], help="numbers of other processes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--recipe", default="int8_dynamic")
    parser.add_argument("--model", type=Path, help="fp32 checkpoint; made with random weights if not given")
    parser.add_argument("--out", type=Path, help="file to append the JSON lines to")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)  # what a process of its own does
    arguments = parser.parse_args()
    if arguments.load is not None:
        print(json.dumps(load(arguments.load, arguments.recipe)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        model = arguments.model or random_checkpoint(Path(temporary))
        command = [sys.executable, __file__, "--load", str(model), "--recipe", arguments.recipe]
        environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
        for busy in [None] + [count for _ in range(arguments.repeats) for count in arguments.busy]:
            with neighbours(busy or 0):
                run = subprocess.run(
                    command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=LONGEST
                )
            if busy is None:  # which filled the page cache
                continue
            row = {"busy": busy, "recipe": arguments.recipe, **json.loads(run.stdout)}
            print(json.dumps(row), flush=True)
            if arguments.out is not None:
                append_json_line(arguments.out, row)


def random_checkpoint(folder: Path) -> Path:
    torch.manual_seed(0)
    VGGT(VGGTConfig()).save_pretrained(folder / "vggt_1b")
    return folder / "vggt_1b"


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(count):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", COUNT_UP]))
            stack.callback(process.kill)
        yield


def load(source: Path, recipe: str) -> dict[str, Any]:
    stop, peak, before = Event(), [0], resource.getrusage(resource.RUSAGE_SELF)

    def watch() -> None:
        while not stop.wait(0.02):
            peak[0] = max(peak[0], anonymous_bytes())

    watcher, start, load_before = Thread(target=watch), time.perf_counter(), os.getloadavg()[0]
    watcher.start()
    disable_progress_bar()
    model = VGGTInt8.from_pretrained(source, recipe=recipe)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    stop.set()
    watcher.join()
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.numpy())
    return {
        "seconds": round(seconds, 2),
        "processor_seconds": round(sum(getattr(after, k) - getattr(before, k) for k in ("ru_utime", "ru_stime")), 2),
        "peak_anonymous_gb": round(peak[0] / 1e9, 2),
        "threads": torch.get_num_threads(),
        "quota": cpus.quota(),
        "system_load": load_before,
        "digest": digest.hexdigest()[:16],
        "versions": installed_versions(),
    }


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
