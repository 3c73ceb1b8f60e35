"""A worker over scenes that take milliseconds, in this process; and supervised ones that die."""

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.batch.standin import Standin
from vggt_int8.batch import Board, Claims, NoPlace, SceneFolder, find_scenes, run_worker
from vggt_int8.batch import supervise as supervision
from vggt_int8.batch.supervise import BadInput, supervise
from vggt_int8.files import sweep

ROOT = Path(__file__).parents[2]
STANDIN = Path(__file__).with_name("standin.py")


def make_scenes(folder: Path, number: int, **faults: int) -> Path:
    """Folders scene_0 …; faults: the kind of fault -> the number of the scene that has it."""
    for i in range(number):
        (folder / "scenes" / f"scene_{i}").mkdir(parents=True)
        (folder / "scenes" / f"scene_{i}" / "image.png").touch()
    for fault, i in faults.items():
        (folder / "scenes" / f"scene_{i}" / fault).touch()
    return folder / "scenes"


def board_of(folder: Path, retries: int = 1) -> Board:
    board = Board(folder / "out", find_scenes(folder / "scenes"), retries)
    board.open({"standin": True})
    return board


def work(folder: Path, retries: int = 1) -> Board:
    return work_on(board_of(folder, retries))


def work_on(board: Board) -> Board:
    with Claims(board.claims_folder) as claims:
        run_worker(board, claims, Standin(board.out, 0.001), poll=0.01)
    return board


def computed(folder: Path) -> Counter[str]:
    path = folder / "computed"
    return Counter(path.read_text().split() if path.exists() else [])


def check_whole(board: Board, failed: set[str] = frozenset()) -> None:
    """All scenes are through, their results whole, and nothing is left of the work."""
    check_results(board, failed)
    assert list(board.claims_folder.iterdir()) == []
    check_nothing_hidden(board)


def check_results(board: Board, failed: set[str] = frozenset()) -> None:
    board.refresh()
    assert {scene.name for scene in board.scenes if board.status(scene).status == "failed"} == set(failed)
    assert board.unfinished() == []
    for scene in board.scenes:
        if scene.name not in failed:
            assert len((board.out / scene.name / "big").read_bytes()) == 4096


def check_nothing_hidden(board: Board) -> None:
    assert [path.name for path in board.out.iterdir() if path.name.startswith(".")] == [".batch"]


def test_all_scenes_are_done_once(tmp_path: Path) -> None:
    make_scenes(tmp_path, 5)
    check_whole(work(tmp_path))
    work(tmp_path)
    assert set(computed(tmp_path).values()) == {1}
    assert len(computed(tmp_path)) == 5


def test_bad_scenes_are_listed_and_survived(tmp_path: Path) -> None:
    make_scenes(tmp_path, 6, unreadable=1, once=3, never=4)
    board = work(tmp_path)
    check_whole(board, {"scene_1", "scene_4"})
    attempts = {scene.name: board.attempts(scene) for scene in board.scenes}
    assert [attempt["error"] for attempt in attempts["scene_1"]] == ["ValueError: scene_1 has no images"]
    assert [attempt["stage"] for attempt in attempts["scene_4"]] == ["compute"] * 2
    assert [attempt["error"] for attempt in attempts["scene_3"]] == ["RuntimeError: out of memory, this once"]


def test_scenes_that_were_mended_are_tried_again(tmp_path: Path) -> None:
    scenes = make_scenes(tmp_path, 2, unreadable=1)
    work(tmp_path)
    assert len(computed(tmp_path)) == 1
    (scenes / "scene_1" / "unreadable").unlink()
    check_whole(work(tmp_path))


def test_failures_are_forgotten_on_request(tmp_path: Path) -> None:
    make_scenes(tmp_path, 2, never=1)
    assert len(work(tmp_path, 0).attempts(board_of(tmp_path).scenes[1])) == 1
    board_of(tmp_path).forget_failures()
    work(tmp_path, 2)
    assert len(board_of(tmp_path).attempts(board_of(tmp_path).scenes[1])) == 3


def test_other_settings_are_turned_away(tmp_path: Path) -> None:
    make_scenes(tmp_path, 1)
    board = board_of(tmp_path)
    with pytest.raises(FileExistsError, match=r"standin was True and is False"):
        board.open({"standin": False})
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").touch()
    with pytest.raises(FileExistsError, match="not one of `batch`"):
        Board(tmp_path / "photos", board.scenes).open({})


def test_a_beginning_that_was_killed_leaves_nothing(tmp_path: Path) -> None:
    make_scenes(tmp_path, 1)
    board = Board(tmp_path / "out", find_scenes(tmp_path / "scenes"))
    left = board.state / ".settings.json.partial-0123abcd"
    for _ in range(2):  # before the settings were there, and after
        left.mkdir(parents=True)
        board.open({"standin": True})
        assert sorted(path.name for path in board.state.iterdir() if path.is_file() or path == left) == [
            "settings.json"
        ]


def test_a_folder_that_another_begins_at_the_same_moment_is_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_scenes(tmp_path, 1)
    board, iterdir = Board(tmp_path / "out", find_scenes(tmp_path / "scenes")), Path.iterdir
    board.out.mkdir()

    def after_the_other(folder: Path) -> Iterator[Path]:
        (folder / ".batch").mkdir()
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", after_the_other)
    board.open({"standin": True})
    assert board.claims_folder.is_dir()


def test_what_is_no_folder_of_scenes_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not there"):
        find_scenes(tmp_path / "missing")
    with pytest.raises(ValueError, match="holds no folders and no videos"):
        find_scenes(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file"):
        find_scenes(tmp_path / "file")


def test_images_may_lie_a_folder_below(tmp_path: Path) -> None:
    (tmp_path / "a" / "images").mkdir(parents=True)
    (tmp_path / "b" / "rgb").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "b.mp4").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "unmounted").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    found = find_scenes(tmp_path)
    assert [scene.images.name for scene in found] == ["images", "b", "b.mp4", "loop", "unmounted"]
    assert [scene.is_video for scene in found] == [False, False, True, False, False]
    before = [scene.fingerprint() for scene in found]
    (tmp_path / "b.mp4").write_bytes(b"longer")
    assert [a == b.fingerprint() for a, b in zip(before, found, strict=True)] == [True, True, False, True, True]
    with pytest.raises(FileNotFoundError, match="unmounted"):  # such a scene is listed with that
        found[-1].paths()
    (tmp_path / "elsewhere").mkdir()
    assert found[-1].fingerprint() != before[-1]
    assert [scene.images.name for scene in find_scenes(tmp_path, "rgb")][:3] == ["rgb", "rgb", "b.mp4"]


def command(folder: Path, retries: int = 1) -> Callable[[str], list[str]]:
    arguments = [str(folder / "out"), str(folder / "scenes")]
    return lambda token: [sys.executable, str(STANDIN), *arguments, token, str(retries)]


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.mark.slow
@pytest.mark.usefixtures("importable")
def test_a_scene_that_kills_its_process_costs_itself_alone(tmp_path: Path) -> None:
    make_scenes(tmp_path, 6, killer=2, breaks_gpu=4)
    board, notes = board_of(tmp_path), []
    supervise(board, [command(tmp_path)], notes.append, poll=0.02)
    check_whole(board, {"scene_2", "scene_4"})
    errors = [attempt["error"] for attempt in board.attempts(board.scenes[2])]
    assert errors == ["the process was killed by SIGKILL (out of memory?) while it was at this scene alone"] * 2
    assert "illegal memory access" in board.attempts(board.scenes[4])[0]["error"]
    assert any("SIGKILL" in note for note in notes)
    assert max(computed(tmp_path).values()) <= 2  # of its neighbours: once when it died, once again


@pytest.mark.usefixtures("importable")
def test_a_worker_that_cannot_begin_is_given_up(tmp_path: Path) -> None:
    make_scenes(tmp_path, 2)
    board, notes = board_of(tmp_path), []
    supervise(board, [lambda token: ["false"]], notes.append, poll=0.01)
    assert "given up" in notes[-1]
    assert len(board.unfinished()) == 2
    with pytest.raises(BadInput):
        supervise(board, [lambda token: [sys.executable, "-c", "raise SystemExit(2)"]], notes.append, poll=0.01)


@pytest.mark.usefixtures("importable")
def test_a_full_disk_stops_the_work_and_is_no_fault_of_the_scenes(tmp_path: Path) -> None:
    make_scenes(tmp_path, 8)
    full, board, notes = tmp_path / "scenes" / "full", board_of(tmp_path), []
    full.touch()
    supervise(board, [command(tmp_path)], notes.append, poll=0.02)
    assert notes == []
    assert len(computed(tmp_path)) <= 3  # what was in hand
    assert len(board.unfinished()) == 8
    assert [board.attempts(scene) for scene in board.scenes] == [[]] * 8
    assert list(board.claims_folder.iterdir()) == []
    full.unlink()
    supervise(board, [command(tmp_path)], notes.append, poll=0.02)
    check_whole(board)


@pytest.mark.usefixtures("importable")
def test_a_folder_of_results_that_is_moved_away_is_not_made_anew(tmp_path: Path) -> None:
    """Else results went to where nobody looks for them: the bare mount point of a disk that is gone, for instance."""
    make_scenes(tmp_path, 3, away=0)
    board, notes = board_of(tmp_path), []
    with pytest.raises(NoPlace, match="out is not there any more: was it moved"):
        supervise(board, [command(tmp_path)], notes.append, poll=0.02)
    assert not board.out.exists()
    assert notes == []
    (tmp_path / "away").rename(board.out)
    (tmp_path / "scenes" / "scene_0" / "away").unlink()
    supervise(board, [command(tmp_path)], notes.append, poll=0.02)
    check_whole(board)


@pytest.mark.parametrize("step", ["read", "claim"])
def test_scenes_that_go_with_the_results_are_not_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    make_scenes(tmp_path, 2)
    board = board_of(tmp_path)

    def away(*_: object) -> None:
        board.out.rename(tmp_path / "away")
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "what was there")

    monkeypatch.setattr(*((Standin, "read") if step == "read" else (Claims, "take")), away)
    with pytest.raises(NoPlace, match="not there any more"):
        work_on(board)
    assert not board.out.exists()
    (tmp_path / "away").rename(board.out)
    assert [board.attempts(scene) for scene in board.scenes] == [[], []]


def test_a_failure_that_cannot_be_noted_stops_the_work_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_scenes(tmp_path, 1, unreadable=0)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Board, "add_failure", full)
    with pytest.raises(NoPlace, match="No space left on device; scene_0 failed with ValueError"):
        work(tmp_path)
    assert list((tmp_path / "out" / ".batch" / "claims").iterdir()) == []


@pytest.mark.parametrize(
    ("told", "workers", "threads"),
    [
        ({}, 1, None),
        ({}, 4, "4"),
        ({"OMP_NUM_THREADS": "1"}, 4, "1"),
        ({"LOCAL_WORLD_SIZE": "8", "OMP_NUM_THREADS": "1"}, 1, "2"),
        ({"LOCAL_WORLD_SIZE": "8", "OMP_NUM_THREADS": "3"}, 1, "3"),
        ({"LOCAL_WORLD_SIZE": "1", "OMP_NUM_THREADS": "1"}, 1, None),
        ({"LOCAL_WORLD_SIZE": "2"}, 64, "1"),
    ],
)
def test_workers_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, str], workers: int, threads: str | None
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr("vggt_int8.cpus.quota", lambda: None)
    monkeypatch.setattr(os, "environ", {"HOME": "/root", "RANK": "0", **told})
    assert supervision._environment(workers) == {
        "HOME": "/root",
        **({} if threads is None else {"OMP_NUM_THREADS": threads}),
    }


def test_workers_and_their_supervisor_do_without_pytorch() -> None:
    code = "import sys; import vggt_int8.batch.supervise; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


SUPERVISOR = """
import sys
from pathlib import Path
from tests.batch.test_worker import board_of, command
from vggt_int8.batch.supervise import supervise
folder = Path(sys.argv[1])
supervise(board_of(folder, 1000), [command(folder, 1000)] * 2, print, poll=0.02)
"""


def kill_at_random(folder: Path, kills: int, seed: int) -> None:
    """Two supervisors with two workers each over one folder: processes are killed, supervisors started anew."""
    chance, environment = random.Random(seed), os.environ | {"PYTHONPATH": str(ROOT)}

    def start() -> "subprocess.Popen[bytes]":
        return subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(folder)], env=environment, cwd=ROOT)

    running, killed = [start(), start()], set()
    try:
        for _ in range(kills):
            time.sleep(chance.uniform(0.1, 1.2))
            i = chance.randrange(2)
            if running[i].poll() is not None:
                running[i] = start()
                continue
            children = Path(f"/proc/{running[i].pid}/task/{running[i].pid}/children").read_text().split()
            victim = chance.choice([running[i].pid, *map(int, children)])
            with contextlib.suppress(ProcessLookupError):  # it has ended, and its supervisor has seen that, just now
                os.kill(victim, chance.choice([signal.SIGKILL, signal.SIGTERM]))
            killed.add(victim)
        for process in running:
            if process.pid in killed:
                process.wait(60)  # a signal takes its time: it may look alive still
        running = [process if process.poll() is None else start() for process in running]
        assert [process.wait(300) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    check_after_kills(board_of(folder, 1000))


def check_after_kills(board: Board) -> None:
    """All is done and nobody at work. A worker that is killed with its supervisor leaves its claim of what it has just
    written, which nobody asks for any more, or an empty folder beside that, which the next writer sweeps away.
    """
    check_results(board)
    claims, start = Claims(board.claims_folder), time.monotonic()
    while claims.others():  # a worker ends right after its supervisor
        assert time.monotonic() - start < 60
        time.sleep(0.01)
    for scene in board.scenes:
        sweep(board.out / scene.name)
    check_nothing_hidden(board)


def test_a_claim_of_what_was_written_before_a_kill_is_in_nobodys_way(tmp_path: Path) -> None:
    """Of a worker without a supervisor, which would have removed it."""
    make_scenes(tmp_path, 3)
    board = board_of(tmp_path)

    class KilledAtTheSecond(Standin):
        def compute(self, scene: SceneFolder, item: object) -> object:
            if scene.name == "scene_1":
                while not board.is_done(board.scenes[0]):
                    time.sleep(0.001)
                os.kill(os.getpid(), signal.SIGKILL)
            return super().compute(scene, item)

    if (child := os.fork()) == 0:
        try:
            with Claims(board.claims_folder) as claims:
                run_worker(board, claims, KilledAtTheSecond(board.out, 0.001), poll=0.01)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    check_after_kills(work(tmp_path))
    assert [path.stem for path in board.claims_folder.iterdir()] == [board.scenes[0].key]


@pytest.mark.slow
def test_processes_that_are_killed(tmp_path: Path) -> None:
    make_scenes(tmp_path, 40)
    kill_at_random(tmp_path, 6, seed=0)


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
def test_fifty_random_kills(tmp_path: Path) -> None:
    make_scenes(tmp_path, 1500)
    kill_at_random(tmp_path, 50, seed=1)
