"""Work on many tensors: a thread each, no more threads than a quota of CPUs, nothing that PyTorch splits."""

import threading
import time

import pytest
import torch

from tests.warm import python
from vggt_int8.kernels.cpu.threads import PIECE, Workers, map_in_threads, pieces


def test_pieces() -> None:
    x = torch.arange(4.0 * PIECE + 4).view(4, -1)
    parts = list(pieces(x))
    assert max(part.numel() for part in parts) == PIECE
    assert torch.equal(torch.cat(parts), x.flatten())
    parts[0][0] = -1
    assert x.flatten()[0] == -1, "views, no copies"
    for whole in (
        x[:, :5],
        torch.zeros(512, 512).t(),
        torch.tensor(1.0),
        torch.empty(0),
        torch.empty(99999, device="meta"),
    ):
        assert [part is whole for part in pieces(whole)] == [True]


@pytest.mark.parametrize("count", [1, 3])
def test_results_come_in_order_and_the_first_error_is_raised(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)

    def work(i: int) -> int:
        time.sleep(0.01 * (5 - i))  # the first is the last to end
        if i in (1, 3):
            raise ValueError(i)
        assert not torch.is_grad_enabled()
        assert (threading.current_thread() is threading.main_thread()) is (count == 1)
        return i

    assert map_in_threads(work, [0, 2, 4]) == [0, 2, 4]
    with pytest.raises(ValueError, match="1"):
        map_in_threads(work, range(5))


def test_a_failure_ends_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    begun = []

    def work(i: int) -> None:
        begun.append(i)
        if i == 1:
            raise MemoryError
        time.sleep(0.01)

    with pytest.raises(MemoryError):
        map_in_threads(work, range(100))
    assert len(begun) < 10


def test_few_jobs_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    go, given = threading.Event(), []

    def give() -> None:
        with Workers() as workers:
            for i in range(20):
                workers.submit(go.wait)
                given.append(i)

    giver = threading.Thread(target=give)
    giver.start()
    while len(given) < 4:
        time.sleep(0.001)
    time.sleep(0.05)
    assert len(given) == 4, "two at work, two waiting"
    go.set()
    giver.join()
    assert len(given) == 20


def test_an_error_cancels_what_has_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    begun, jobs = [], []

    def hold() -> None:
        while not (jobs and jobs[0].cancelled()):
            time.sleep(0.001)

    def give() -> None:
        with Workers() as workers:
            workers.submit(hold)
            jobs.append(workers.submit(begun.append, 0))  # a second would wait for the one at work
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        give()
    assert begun == []


@pytest.mark.slow
def test_pytorch_starts_no_threads_for_it() -> None:
    """Each thread that PyTorch starts is one more to wait for in every operation."""
    code = """
import os, torch
from torch import nn
from vggt_int8.kernels.cpu import threads as cpu_threads
from vggt_int8 import Recipe, quantize
from vggt_int8.pretrained.checkpoint import _check_values
from vggt_int8.quant.storage import encode, to_fp16
def count():
    return len(os.listdir("/proc/self/task"))
def zeros(*shape):  # which PyTorch would fill with all its threads
    return torch.frombuffer(bytearray(4 * torch.Size(shape).numel()), dtype=torch.float32).view(shape)
def counted(work):
    def run(*arguments):
        before, result = count(), work(*arguments)
        started.append(max(0, count() - before))  # one that was joined before may still be going
        return result
    return run
torch.set_num_threads(4)
cpu_threads._AT_MOST, submit = 1, cpu_threads.Workers.submit  # so nothing else starts meanwhile
cpu_threads.Workers.submit = lambda self, work, *arguments: submit(self, counted(work), *arguments)
x, before, started = zeros(300, 1030), count(), []
encode(x, 0), encode(x, 1), to_fp16(x, "x")
started.append(max(0, count() - before))
layers = nn.Linear(1030, 300, device="meta"), nn.Conv2d(64, 64, 3, device="meta")
model = nn.Sequential(*layers, nn.ConvTranspose2d(64, 64, 4, device="meta"))
_check_values([("0.weight", x)], model)
for module in model:
    for name, parameter in list(module.named_parameters()):
        setattr(module, name, nn.Parameter(zeros(*parameter.shape)))
quantize(model, Recipe(activations="none"))
print(type(model[2]).__name__, len(started), sum(started), torch.get_num_threads())
before = count()
x + 1
print(count() - before > 0)
"""
    run = python("-c", code)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["Int8ConvTranspose2d", "8", "0", "4", "True"], "some by what it splits"
