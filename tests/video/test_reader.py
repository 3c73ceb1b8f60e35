"""Videos as cameras write them: turned, mirrored, of uneven rate, cut off, damaged, of high dynamic range."""

from __future__ import annotations

import math
import struct
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.video.clips import (
    BLUE,
    GREEN,
    HEIGHT,
    RED,
    WIDTH,
    picture,
    write_clip,
    write_cover,
    write_flat_hdr,
    write_sound_from_the_middle,
)
from vggt_int8.video import Video, VideoError, is_video
from vggt_int8.video.orientation import turn_of

_QUARTERS = ((0, 0), (0, 1), (1, 0), (1, 1))  # rows and columns of corners


def corner_colors(image: Image.Image) -> list[tuple[int, ...]]:
    """Of the four quarters' middles, in reading order."""
    width, height = image.size
    return [image.getpixel((width // 4 + width // 2 * x, height // 4 + height // 2 * y)) for y, x in _QUARTERS]  # type: ignore[misc]


def close(found: tuple[int, ...], wanted: tuple[int, ...] | np.ndarray) -> bool:
    """Within what 4:2:0 at a low quantizer changes."""
    return bool(np.abs(np.subtract(found, wanted)).max() <= 12)


def number_of(image: Image.Image) -> int:
    return round(corner_colors(image)[3][0] / 10)


def test_frames_come_in_order_with_their_times_and_names(tmp_path: Path) -> None:
    times = [0, 0.1, 0.2, 0.5, 0.6, 0.7, 1.5, 1.6]  # of variable rate
    with Video(write_clip(tmp_path / "a clip.mkv", times)) as video:
        assert (video.size, video.transfer) == ((HEIGHT, WIDTH), None)
        frames = list(video.frames())
        assert [frame.seconds for frame in frames] == pytest.approx(times)
        assert [number_of(frame.image) for frame in frames] == list(range(8)) == [frame.index for frame in frames]
        assert frames[3].name == "a clip_00000.500.png"
        assert [number_of(frame.image) for frame in video.frames(every=3)] == [0, 3, 6]
        assert [number_of(frame.image) for frame in video.frames(every=3, skip=1)] == [3, 6]
        assert [number_of(frame.image) for frame in video.frames(start=0.55, end=1.55)] == [4, 5, 6]
        assert video.ending is None
    assert all(map(close, corner_colors(frames[0].image), (RED, GREEN, BLUE, picture(0)[-1, -1])))


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mkv", "libx264"), (".webm", "libvpx-vp9"), (".mp4", "libx264"), (".ts", "libx264")]
)
def test_a_clock_that_does_not_begin_at_zero(tmp_path: Path, suffix: str, codec: str) -> None:
    with Video(write_clip(tmp_path / f"a{suffix}", [5, 5.1, 5.2, 5.5], codec=codec)) as video:
        assert [frame.seconds for frame in video.frames()] == pytest.approx([0, 0.1, 0.2, 0.5])
        assert [frame.seconds for frame in video.frames(start=0.15)] == pytest.approx([0.2, 0.5])
        assert video.duration == pytest.approx(0.6)
        assert video.ending is None


def test_a_stream_that_begins_midway_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sound_from_the_middle(tmp_path / "a.ts")
    opened = av.open
    monkeypatch.setattr(
        av, "open", lambda *args, options, **named: opened(*args, options={**options, "probesize": "100000"}, **named)
    )
    with Video(path) as video:
        assert [round(frame.seconds, 1) for frame in video.frames()] == [0, 0.1, 0.2, 0.3]
        assert video.ending is None


@pytest.mark.parametrize("suffix", [".mkv", ".ts"])  # with an index of key frames, and without one
def test_no_frame_behind_start_is_missed(tmp_path: Path, suffix: str) -> None:
    with Video(write_clip(tmp_path / f"a{suffix}", [i / 10 for i in range(30)])) as video:
        for first in (1, 23, 29):
            found = [frame.seconds for frame in video.frames(start=first / 10 - 0.01)]
            assert found == pytest.approx([i / 10 for i in range(first, 30)])


def test_readings_do_not_disturb_one_another_and_end_when_the_video_is_closed(tmp_path: Path) -> None:
    with Video(write_clip(tmp_path / "a.mkv")) as video:
        one = video.frames()
        assert next(one).index == 0
        other = video.frames(every=5)
        assert [next(other).index, next(one).index, next(other).index, next(one).index] == [0, 1, 5, 2]
        assert [frame.index for frame in one] == list(range(3, 20))
    with pytest.raises(ValueError, match=r"a\.mkv was closed"):
        next(other)
    with pytest.raises(ValueError, match=r"a\.mkv is closed"):
        video.frames()


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_pictures_stand_as_players_show_them(tmp_path: Path, degrees: int, mirrored: bool) -> None:
    path = write_clip(tmp_path / "turned.mp4", [0, 0.1], turn=(degrees, mirrored, False))
    upright = np.rot90(picture(0), degrees // 90)  # counter-clockwise, as the writer counts
    upright = upright[:, ::-1] if mirrored else upright
    with Video(path) as video:
        image = next(video.frames()).image
        assert video.size == (image.height, image.width) == upright.shape[:2]
    wanted = corner_colors(Image.fromarray(np.ascontiguousarray(upright)))
    assert all(map(close, corner_colors(image), wanted)), (corner_colors(image), wanted)


def test_pixels_become_square(tmp_path: Path) -> None:
    with Video(write_clip(tmp_path / "wide.mp4", [0, 0.1], aspect=Fraction(4, 3))) as video:
        image = next(video.frames()).image
        assert (image.height, image.width) == video.size == (HEIGHT, round(WIDTH * 4 / 3))
    with Video(write_clip(tmp_path / "tall.mp4", [0, 0.1], aspect=Fraction(3, 4), turn=(90, False, False))) as video:
        image = next(video.frames()).image
        assert (image.height, image.width) == video.size == (WIDTH, round(HEIGHT * 4 / 3))


def test_the_sharpest_frame_of_an_interval(tmp_path: Path) -> None:
    noise = [2, 2, 30, 2, 2, 2, 2, 2, 2, 30]
    with Video(write_clip(tmp_path / "s.mkv", [i / 10 for i in range(10)], noise=noise)) as video:
        assert [frame.index for frame in video.frames(fps=2, sharpest=True)] == [2, 9]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_a_video_that_is_cut_off_gives_what_is_there_and_says_where_it_ended(tmp_path: Path, suffix: str) -> None:
    noise = [40.0] * 60  # so that frames are large against headers
    options = {"movflags": "faststart"} if suffix == ".mp4" else {}
    codec = "mpeg4" if suffix == ".avi" else "libx264"  # of H.264 in AVI FFmpeg guesses times
    times = [i / 10 for i in range(60)]
    whole = write_clip(tmp_path / f"whole{suffix}", times, codec=codec, options=options, noise=noise)
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    with Video(cut) as video, pytest.warns(UserWarning, match=r"ends at \d\.\d+ s of 6\.\d+ s"):
        frames = list(video.frames())
    assert 15 < len(frames) < 55
    assert video.ending is not None
    assert video.ending.seconds == frames[-1].seconds
    with Video(whole) as video:
        assert len(list(video.frames())) == 60
        assert video.ending is None


def test_a_damaged_video_goes_on_behind_the_damage(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.mkv", [i / 10 for i in range(60)], noise=[40.0] * 60)
    data = bytearray(whole.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 1000] = bytes(37 * i % 256 for i in range(1000))
    path = tmp_path / "damaged.mkv"
    path.write_bytes(data)
    with Video(path) as video, pytest.warns(UserWarning, match="damaged at"):
        frames = list(video.frames())
    assert frames[-1].seconds == pytest.approx(5.9)
    assert video.ending is not None
    assert video.ending.damaged >= 1


def test_what_is_no_video_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video " * 100)
    (tmp_path / "list.mkv").write_text("#EXTM3U\n#EXTINF:1,\n/etc/hostname\n")
    whole = write_clip(tmp_path / "late.mp4", [0, 0.1, 0.2])  # its index is at the end
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:1200])
    for name in ("text.mp4", "list.mkv", "cut.mp4"):
        with pytest.raises(VideoError, match=rf"{name} cannot be opened as a video"):
            Video(tmp_path / name)
    with pytest.raises(VideoError, match=r"sound\.mp4 holds only a cover picture, no video stream"):
        Video(write_cover(tmp_path / "sound.mp4"))
    with pytest.raises(FileNotFoundError, match="no such video file"):
        Video(tmp_path / "none.mp4")
    with Video(whole) as video:
        for start, shown in ((7, "7 s"), (1e300, r"1e\+300 s")):
            with pytest.raises(
                VideoError, match=rf"no frame that can be decoded between {shown} and the end; it is 0\.3"
            ):
                list(video.frames(start=start))
        with pytest.raises(ValueError, match="skip is -1"):
            video.frames(skip=-1)


def test_without_pyav_there_is_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "a.mkv", [0, 0.1])
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(VideoError, match=r"pip install 'vggt-int8\[video\]'"):
        Video(path)


def _pq(light: float) -> float:
    """Light over 203 cd/m2 -> signal, the inverse function of ST 2084."""
    y = (light * 203 / 10000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * y) / (1 + 2392 / 128 * y)) ** (2523 / 32)


def _hlg(light: float) -> float:
    """A gray of that light over 203 cd/m2 on a display of 1000 -> signal of BT.2100."""
    scene = (light * 203 / 1000) ** (1 / 1.2)
    return math.sqrt(3 * scene) if scene <= 1 / 12 else 0.17883277 * math.log(12 * scene - 0.28466892) + 0.55991073


@pytest.mark.parametrize(("name", "transfer", "encode"), [("PQ", 16, _pq), ("HLG", 18, _hlg)])
@pytest.mark.parametrize(("light", "width"), [(0.02, 64), (0.18, 64), (0.18, 61), (0.6, 64)])
def test_high_dynamic_range_looks_as_standard_range_does(
    tmp_path: Path, name: str, transfer: int, encode: object, light: float, width: int
) -> None:
    gray = encode(light)  # type: ignore[operator]
    with Video(write_flat_hdr(tmp_path / "hdr.mkv", (gray, gray, gray), transfer, width)) as video:
        assert video.transfer == name
        image = next(video.frames()).image
    assert image.size == (width, HEIGHT)
    pixel = image.getpixel((3, 3))
    wanted = 255 * (1.055 * light ** (1 / 2.4) - 0.055)
    assert close(pixel, (wanted,) * 3)  # type: ignore[arg-type]
    assert max(pixel) - min(pixel) <= 2  # type: ignore[type-var, operator, arg-type]


@pytest.mark.parametrize("width", [64, 61])
def test_colours_of_high_dynamic_range_keep_their_channels(tmp_path: Path, width: int) -> None:
    light = np.array([0.4, 0.1, 0.02])  # of BT.709
    wide = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]) @ light  # BT.2087
    signal = (_pq(wide[0]), _pq(wide[1]), _pq(wide[2]))
    with Video(write_flat_hdr(tmp_path / "hdr.mkv", signal, 16, width)) as video:
        pixel = next(video.frames()).image.getpixel((3, 3))
    assert close(pixel, 255 * (1.055 * light ** (1 / 2.4) - 0.055))  # type: ignore[arg-type]


def test_highlights_are_rolled_off_in_order(tmp_path: Path) -> None:
    pixels = []
    for light in (0.7, 1.0, 2.0, 4.0):
        path = write_flat_hdr(tmp_path / f"{light}.mkv", (_pq(light),) * 3, 16)
        with Video(path) as video:
            pixels.append(next(video.frames()).image.getpixel((3, 3))[0])  # type: ignore[index]
    assert pixels == sorted(pixels)
    assert len(set(pixels[:3])) == 3


def test_a_matrix_that_is_no_turn_is_refused() -> None:
    def matrix(a: float, b: float, c: float, d: float) -> bytes:
        return struct.pack("<9i", *(round(65536 * value) for value in (a, b, 0, c, d, 0, 0, 0)), 1 << 30)

    assert turn_of(matrix(2, 0, 0, 2)) is None  # twice as large as it is stored
    assert turn_of(matrix(-1, 0, 0, 1)) == Image.Transpose.FLIP_LEFT_RIGHT
    for numbers in ((0.7, 0.7, -0.7, 0.7), (1, 0.3, 0, 1), (1, 1, 1, 1), (1, 0, 0, 0.5)):
        with pytest.raises(ValueError, match="no turn by quarters"):
            turn_of(matrix(*numbers))
    with pytest.raises(ValueError, match="zero"):
        turn_of(matrix(0, 0, 0, 0))


def test_names_of_videos() -> None:
    assert is_video("a/IMG_1.MOV")
    assert not is_video("a/b.jpg")
    assert not is_video("mov")
