"""Python programs in processes of their own that need not import PyTorch anew, which takes most of a short one's time.

`python(...)` is `subprocess.run([sys.executable, ...])` for programs whose environment, folder, arguments, output and
exit code matter, and no more. One process has imported PyTorch and what comes with it, and nothing that reads the
environment when it is imported: neither transformers and huggingface_hub nor this package. Each program is a fork of
it. What depends on how a process starts (threads, signals, memory, the time of imports) needs `subprocess`.
"""

import atexit
import functools
import gc
import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
# What transformers, accelerate and huggingface_hub would import of other libraries.
LIBRARIES = (
    *("torch", "torch._dynamo", "torch._inductor.decomposition", "torch.distributed.tensor", "torch.distributed.fsdp"),
    *("torch.nn.attention.flex_attention", "torch.distributed.checkpoint", "scipy.optimize", "PIL.Image"),
    *("rich.console", "typer", "jinja2"),
    *("anyio", "filelock", "psutil", "regex", "safetensors.torch", "tokenizers", "yaml"),
)
HTTP = ("httpx2", "httpx")  # the one of huggingface_hub's version, which reads the environment for each client


def python(
    *command: object, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `-c PROGRAM ARGUMENTS…` or `-m MODULE ARGUMENTS…`. env: the whole environment, else that of this process."""
    arguments = [str(argument) for argument in command]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / name for name in ("stdout", "stderr")]
        told = {"command": arguments, "env": dict(os.environ if env is None else env), "cwd": str(cwd or Path.cwd())}
        process = _started()
        assert process.stdin is not None
        assert process.stdout is not None
        print(json.dumps(told | {"outputs": list(map(str, outputs))}), file=process.stdin, flush=True)
        code = int(process.stdout.readline())
        out, err = (path.read_text() for path in outputs)
    return subprocess.CompletedProcess([sys.executable, *arguments], code, out, err)


@functools.cache
def _started() -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.warm"], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    atexit.register(_end, process)
    return process


def _end(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.close()  # the end of its questions
    process.wait()


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    http = next((name for name in HTTP if importlib.util.find_spec(name)), "http.client")
    for name in (*LIBRARIES, http):
        importlib.import_module(name)
    re._MAXCACHE = 1 << 14  # type: ignore[attr-defined]  # as in conftest.py, and so is the next line
    gc.freeze()
    late = [name for name in ("transformers", "huggingface_hub", "vggt_int8") if name in sys.modules]
    assert not late, f"{late} would have read another environment"
    for question in sys.stdin:
        child = os.fork()
        if child == 0:
            answers.close()
            become(**json.loads(question))
            return  # and ends as any Python does, and so it does where an exception comes out of `become`
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


def become(command: list[str], env: dict[str, str], cwd: str, outputs: list[str]) -> None:
    """Do what Python does with this command line."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    kind, program, *arguments = command
    sys.argv = [kind if kind == "-c" else program, *arguments]
    sys.path[0:0] = ["", *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    if kind == "-c":
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
    elif kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        raise ValueError(f"neither -c nor -m, but {kind!r}")


if __name__ == "__main__":
    serve()
