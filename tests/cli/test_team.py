"""`vggt-int8 run` on several devices: one process each, of which this one alone reads and writes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from vggt_int8.cli.team import Loading, launched_rank, team_of

LOADING = Loading("embedded", None, "auto", None, "cpu")


@pytest.mark.parametrize(
    ("devices", "said"),
    [(["cuda:0", "cuda:0"], "every process needs a GPU of its own"), (["cpu", "cuda:7"], "sees 0 CUDA devices")],
)
def test_devices_that_cannot_share_a_scene_are_refused(
    devices: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ValueError, match=said), team_of(devices, LOADING):
        pass


def test_a_launcher_gives_devices_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert launched_rank() == 0, "a rank among one process is no launcher's"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launched_rank() == 1
    with pytest.raises(ValueError, match="leave the 2 --device out"), team_of(["cpu", "cpu"], LOADING):
        pass


def test_windows_are_not_shared_out(cli, photos: list[Path], tmp_path: Path) -> None:
    asked = ("run", "embedded", *photos, "-o", tmp_path / "out", "--window", "8", "--device", "cpu", "--device", "cpu")
    assert "--window reconstructs few images at a time" in cli(*asked, code=2)


def test_a_process_that_ends_early_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        pytest.raises(RuntimeError, match=r"cpu \(rank 1\) ended with exit code 1"),
        team_of(["cpu", "cpu"], LOADING) as together,
    ):
        together.join(None)
    assert all(process.returncode is not None for process in together.followers.values())


@pytest.mark.slow
def test_two_processes_write_what_one_writes(
    cli, tiny: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    for name, devices in (("one", 1), ("two", 2)):
        asked = (
            "run",
            tiny,
            *photos,
            photos[0],
            "-o",
            tmp_path / name,
            "--format",
            "depth",
            *["--device", "cpu"] * devices,
        )
        cli(*asked)
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two")]
    assert reports[1]["runtime"]["frames_of_each_gpu"] == [2, 1]
    assert "frames_of_each_gpu" not in reports[0]["runtime"]
    one, two = (sorted(path.name for path in (tmp_path / name).rglob("*")) for name in ("one", "two"))
    assert one == two
    for path in (tmp_path / "one" / "depth").glob("*.npy"):
        got, want = np.load(tmp_path / "two" / "depth" / path.name), np.load(path)
        assert np.abs(got - want).max() < 2e-5 * np.abs(want).max()
