"""Frames shared out over processes: results are those of one process, and no process waits for one that failed."""

import json
from typing import Any

import pytest
import torch

from tests.shards.ranks import RANKS
from tests.warm import python
from vggt_int8 import VGGTConfig, VGGTInt8
from vggt_int8.model.layers import key_frames
from vggt_int8.runtime.memory import PLANS, Shape
from vggt_int8.shards import FrameShard, share_out

# Relative, in fp32: attention is the same sum over the same keys, cut into other blocks of queries. As in
# tests/runtime/test_network.py, the tracker makes an error of its maps 35 times as large.
FP32 = 2e-5
TRACKS = ("track", "vis", "conf")
TRACKED = 35


@pytest.mark.parametrize(("frames", "processes"), [(200, 2), (7, 3), (2, 4), (1, 1), (8, 8)])
def test_frames_are_shared_out_in_order_and_evenly(frames: int, processes: int) -> None:
    counts = share_out(frames, processes)
    assert (sum(counts), len(counts)) == (frames, processes)
    assert max(counts) - min(counts) <= 1
    assert list(counts) == sorted(counts, reverse=True), "the first rank has the first frame"


@pytest.mark.parametrize("keyframes", [1, 3, 6, 11])
def test_key_frames_are_those_of_the_whole_scene(keyframes: int) -> None:
    counts, found = share_out(11, 3), []
    for rank in range(3):
        shard = FrameShard(None, rank, counts)
        own, of_each = shard.key_frames(keyframes)
        assert len(own) == of_each[rank]
        found += [shard.own.start + frame for frame in own]
    assert found == key_frames(11, keyframes, device=torch.device("cpu")).tolist()


def test_keys_of_all_frames_count_in_a_shards_memory() -> None:
    config, sizes = VGGTConfig(), (392, 518, ("camera", "depth", "point"), 2)
    alone = Shape(1, 100, *sizes).peak_bytes(config, PLANS[0])
    keys = 2 * 1041 * 1024 * 2
    few, many = (Shape(1, 100, *sizes, scene=scene).peak_bytes(config, PLANS[0]) for scene in (2000, 4000))
    assert many - few == 2000 * keys
    assert few > alone


def test_without_a_process_group_it_says_how_to_make_one(make_bare: Any) -> None:
    with pytest.raises(RuntimeError, match="init_process_group"):
        make_bare().set_context_parallel()


def test_unknown_outputs_are_refused(make_bare: Any) -> None:
    with pytest.raises(ValueError, match="all, first, own, or off; got 'rank0'"):
        make_bare().set_context_parallel("rank0")
    model: VGGTInt8 = make_bare()
    model.set_context_parallel("off")  # which it is


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank found."""
    folder = tmp_path_factory.mktemp("ranks")
    run = python("-m", "tests.shards.ranks", folder)
    assert run.returncode == 0, run.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.slow
def test_results_are_those_of_one_process(found: list[dict[str, Any]]) -> None:
    codes = found[0]["codes"]
    compared = 0
    for rank in found:
        for name, errors in rank["equal"].items():
            for field, error in errors.items():
                limit = FP32 * (TRACKED if field in TRACKS else 1) + (codes[field] if name.startswith("int8") else 0.0)
                assert error < limit, (name, field, error)  # which NaN is not
                compared += field != "images"
    assert compared > 300
    assert all(rank["same again"] for rank in found)


@pytest.mark.slow
def test_outputs_are_where_they_were_asked_for(found: list[dict[str, Any]]) -> None:
    assert all(rank["outputs first"] and rank["outputs own"] for rank in found)
    assert [rank["frames of its own"] for rank in found] == [[1] * 3, [1] * 3, [0] * 3, [0] * 3]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "here", "elsewhere"),
    [
        ("nan", "NonFiniteOutput: the input images hold NaN", "rank 1 of 4: NonFiniteOutput: the input images"),
        (
            "within a call",
            "MemoryError: as if",
            "PeerFailed: the call failed in the process of rank 1 of 4: MemoryError",
        ),
        ("other images", "images differs: ((1, 6", "images differs: ((1, 6, 3, 42, 56), torch.float32) on rank 0"),
        ("other heads", "heads differs", "heads differs: ('depth',) on rank 0, ('camera',) on rank 1"),
        ("bad arguments", "ValueError: ", "PeerFailed: the call failed in the process of rank 1 of 4: ValueError: "),
        ("one in training", "ValueError: shared out frames", "rank 1 of 4: ValueError: shared out frames give no grad"),
        ("other weights", "weights (checksum) differs", "weights (checksum) differs"),
        ("gradients", "torch.no_grad()", "ValueError: shared out frames give no gradients"),
        ("after failures", "nothing", "nothing"),
        ("a copy is alone", "nothing", "nothing"),
    ],
)
def test_what_fails_in_one_process_fails_in_all(
    found: list[dict[str, Any]], case: str, here: str, elsewhere: str
) -> None:
    said = [rank[case] for rank in found]
    assert here in said[1]
    assert all(elsewhere in said[rank] for rank in (0, 2, 3)), said


@pytest.mark.slow
def test_all_begin_again_under_a_smaller_plan_where_memory_runs_out_in_one(found: list[dict[str, Any]]) -> None:
    for case in ("once", "the same again", "two at work"):
        assert [rank[f"memory, {case}"] for rank in found] == ["nothing"] * RANKS
    assert [rank["plans, once"] for rank in found] == [[0, 1]] * RANKS
    assert [rank["plans, the same again"] for rank in found] == [[1]] * RANKS, "all have learned it"
    assert [rank["plans, two at work"] for rank in found] == [[0, 1, 2], [0, 1, 2], [], []]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "plans"), [("no room", [*range(len(PLANS))]), ("one plan", [0])])
def test_memory_that_suffices_for_no_plan_is_told_by_all(
    found: list[dict[str, Any]], case: str, plans: list[int]
) -> None:
    assert [rank[f"plans, {case}"] for rank in found] == [plans] * RANKS
    said = [rank[f"memory, {case}"] for rank in found]
    assert said[1].startswith("OutOfMemoryError: 1 x 1 frames of 42 x 56 pixels need about")
    assert all(said[rank].startswith("PeerFailed: the call failed in the process of rank 1") for rank in (0, 2, 3))


@pytest.mark.slow
def test_nobody_waits_for_a_process_that_is_gone(found: list[dict[str, Any]]) -> None:
    assert "lost" not in found[3], "it ended within the call"
    assert all("LostProcess: rank" in rank["lost"] for rank in found[:3])
    assert "not of the group" in found[3]["not of the group"]
