"""Which frames are taken, by time alone."""

from __future__ import annotations

import pytest

from vggt_int8.video.pick import check_choice, pick


def taken(times: list[float], **options: object) -> list[float]:
    return [seconds for seconds, _ in pick([(t, i) for i, t in enumerate(times)], **options)]  # type: ignore[arg-type]


EVEN = [i / 30 for i in range(61)]


def test_everything_unless_told_otherwise() -> None:
    assert taken(EVEN) == EVEN
    assert taken(EVEN, every=7) == EVEN[::7]


def test_from_start_up_to_but_without_end() -> None:
    assert taken(EVEN, start=0.5, end=1.0) == EVEN[15:30]
    assert taken(EVEN, every=4, start=0.5, end=1.0) == EVEN[15:30:4]
    assert taken(EVEN, fps=5, start=0.5, end=1.0) == [EVEN[15], EVEN[21], EVEN[27]]  # none for the tick at the end


@pytest.mark.parametrize("fps", [1, 3, 10, 15, 30])
def test_a_rate_that_divides_the_videos_own_takes_its_frames_evenly(fps: int) -> None:
    assert taken(EVEN, fps=fps) == EVEN[:: 30 // fps]
    rounded = [round(t, 3) for t in EVEN]  # as Matroska stores them
    assert taken(rounded, fps=fps) == rounded[:: 30 // fps]


def test_a_rate_above_the_videos_own_takes_no_frame_twice() -> None:
    assert taken(EVEN, fps=100) == EVEN


def test_of_each_tick_the_nearest_frame() -> None:
    assert taken([0.0, 0.4, 0.55, 0.9, 1.3, 1.45, 2.1], fps=2) == [0.0, 0.55, 0.9, 1.45, 2.1]
    # Ticks at 0, 0.5, 1.0, 1.5, 2.0: the last frame is nearest to 2.0 and further than half an interval from no other.


def test_a_gap_stays_a_gap() -> None:
    assert taken([0.0, 0.1, 0.2, 5.0, 5.1, 5.2], fps=10) == [0.0, 0.1, 0.2, 5.0, 5.1, 5.2]
    assert taken([0.0, 0.1, 0.2, 5.0, 5.1, 5.2], fps=1) == [0.0, 0.2, 5.0]


def test_the_sharpest_of_each_interval() -> None:
    sharp = {3: 1.0, 17: 2.0, 29: 3.0, 31: 1.0, 60: 0.1}
    frames = [(t, i) for i, t in enumerate(EVEN)]
    found = [i for _, i in pick(frames, fps=1, sharpness=lambda i: sharp.get(i, 0.0))]
    assert found == [29, 31, 60]
    assert [i for _, i in pick(frames, every=20, sharpness=lambda i: sharp.get(i, 0.0))] == [17, 29, 40, 60]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"fps": 1.0, "every": 2}, "both"),
        ({"fps": 0.0}, "fps is 0"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"every": 0}, "every is 0"),
        ({"start": -1.0}, "start is -1"),
        ({"start": 3.0, "end": 2.0}, "end 2 must be later than start 3"),
        ({"sharpest": True}, "sharpest"),
    ],
)
def test_what_does_not_fit_is_named(options: dict[str, object], word: str) -> None:
    whole = {"fps": None, "every": None, "start": None, "end": None, "sharpest": False, **options}
    with pytest.raises(ValueError, match=word):
        check_choice(**whole)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"fps": True}, {"start": "1"}, {"end": [2.0]}])
def test_what_is_no_number_is_named(options: dict[str, object]) -> None:
    whole = {"fps": None, "every": None, "start": None, "end": None, "sharpest": False, **options}
    with pytest.raises(TypeError, match=rf"{next(iter(options))} is .*; it must be a number"):
        check_choice(**whole)  # type: ignore[arg-type]
