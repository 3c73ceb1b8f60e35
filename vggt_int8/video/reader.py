"""`Video`: opens a video file with PyAV and decodes it frame by frame, as far as possible."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image

from vggt_int8.video.color import TRANSFERS, sharpness, square_size, to_rgb
from vggt_int8.video.frame import Ending, VideoError, VideoFrame
from vggt_int8.video.orientation import SIDEWAYS, turn_of
from vggt_int8.video.pick import check_choice, pick

# Containers of cameras and programs. Playlists, which name other files and addresses, are none.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,ivf,mxf,h264,hevc,m4v,mpegvideo,vc1,dv,obu,av1"
)
# Seconds before a wanted time, tried in turn. Transport streams have no index of key frames, and FFmpeg goes to any
# frame of that time: what can be decoded begins later.
_SEEK_BACK = (0.0, 2.0, 10.0)
_LAST_TICK = 2**63 - 1
_SLACK_FRAMES, _SLACK_SECONDS = 3, 0.5  # by which a whole video may end before its stated duration


class Video:
    """A video file, open until the `with` block ends or `close()`.

    path: a regular file.
    rate: average frames per second that the file states; None if it does not.
    duration: seconds from the first frame to the end, likewise.
    transfer: "PQ" or "HLG" for high dynamic range, else None.
    size: (H, W) of the resulting frames: upright, with square pixels.
    ending: None, or once `frames` has reached the end of an incomplete video, where and why, if its container tells how
        long it was (transport streams do not).

    Raises FileNotFoundError, and `VideoError` (a ValueError) for a file that is not a video or if PyAV is missing.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            kind = "no such video file" if not self.path.exists() else "not a regular file"
            raise FileNotFoundError(f"{kind}: {self.path}")
        self._av = _import_av(self.path)
        self._closed = False
        self._origin = 0.0  # the first frame's time by the stream's own clock
        self.duration: float | None = None
        self.ending: Ending | None = None
        with self._opened() as (container, stream):
            self.rate = float(stream.average_rate) if stream.average_rate else None
            self._look_at_first(container, stream)
            self.duration = self._stated_duration(container, stream)

    def __enter__(self) -> "Video":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Frames that are asked for afterwards raise ValueError."""
        self._closed = True

    def frames(
        self,
        *,
        fps: float | None = None,
        every: int | None = None,
        start: float | None = None,
        end: float | None = None,
        sharpest: bool = False,
        skip: int = 0,
    ) -> Iterator[VideoFrame]:
        """Frames in order of time, decoded on demand; each call starts anew, independent of the others.

        fps: this many per second, nearest to even times, by timestamps; never a frame twice.
        every: every n-th frame instead.
        start, end: seconds from the first frame; `end` itself is excluded.
        sharpest: of each interval of `fps` or `every` the sharpest frame.
        skip: skip the first `skip` of these frames, to resume an earlier reading.

        A corrupted or truncated video yields the frames that can be decoded; `ending` and a warning then say where and
        why it ended. Raises `VideoError` if no frame can be decoded, or none lies between `start` and `end`, and
        ValueError or TypeError for invalid options.
        """
        if self._closed:
            raise ValueError(f"{self.path} is closed: open it again")
        check_choice(fps, every, start, end, sharpest)
        if skip < 0:
            raise ValueError(f"skip is {skip}; it must be 0 or more")
        return self._frames(fps, every, start, end, sharpest, skip)

    def _frames(
        self, fps: float | None, every: int | None, start: float | None, end: float | None, sharpest: bool, skip: int
    ) -> Iterator[VideoFrame]:
        measure = (lambda item: sharpness(item[1])) if sharpest else None
        picked = pick(self._decode(start or 0.0), fps=fps, every=every, start=start, end=end, sharpness=measure)
        found = False
        for number, (seconds, (index, frame)) in enumerate(picked):
            found = True
            if number >= skip:
                yield VideoFrame(self._upright(frame), seconds, index, f"{self.path.stem}_{seconds:09.3f}.png")
        if self.ending is not None:
            warnings.warn(f"{self.path} {self.ending.reason}", stacklevel=2)
        if not found:
            until = "the end" if end is None else f"{end:g} s"
            between = "" if start is None and end is None else f" between {start or 0:g} s and {until}"
            length = "" if self.duration is None else f"; it is {self.duration:.3f} s long"
            raise VideoError(f"{self.path} has no frame that can be decoded{between}{length}")

    def _upright(self, frame: Any) -> Image.Image:
        try:
            picture = to_rgb(frame, self._aspect)
        except ValueError as error:
            raise VideoError(f"{self.path} cannot be used: {error}") from error
        return picture if self._turn is None else picture.transpose(self._turn)

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        """A container and its video stream, for one reading alone: FFmpeg crashes where two share them."""
        path = os.fsdecode(os.path.abspath(self.path))
        options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
        try:
            container = self._av.open(f"file:{path}", options=options, metadata_errors="replace")
        except (self._av.FFmpegError, ValueError) as error:
            raise VideoError(
                f"{self.path} cannot be opened as a video ({_reason(error)}): it is of another kind, or cut off before "
                "the index that some cameras write last; untrunc or the camera itself may mend that"
            ) from error
        with container:
            stream = self._stream(container)
            stream.thread_type = "AUTO"
            yield container, stream

    def _stream(self, container: Any) -> Any:
        cover = self._av.stream.Disposition.attached_pic
        videos = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not videos:
            what = "only a cover picture, no video stream" if container.streams.video else "no video stream"
            raise VideoError(f"{self.path} holds {what}")
        best = container.streams.best("video")
        return best if best in videos else videos[0]

    def _stated_duration(self, container: Any, stream: Any) -> float | None:
        seconds: float | None = None
        if stream.duration:
            seconds = float(stream.duration * stream.time_base)
        elif container.duration:
            seconds = container.duration / self._av.time_base
        kind = container.format.name
        if kind == "avi" and seconds and stream.frames and self.rate:
            # Of a file that was cut off FFmpeg states what its size has room for.
            seconds = max(seconds, stream.frames / self.rate)
        if seconds and "matroska" in kind:  # which states the time of its end
            seconds -= self._origin
        return seconds if seconds and seconds > 0 else None

    def _look_at_first(self, container: Any, stream: Any) -> None:
        """Time, orientation, size and dynamic range of the first frame, which are those of all."""
        seconds, (_, frame) = next(self._read(container, stream), (0.0, (0, None)))
        if frame is None:
            raise VideoError(f"{self.path} has no frame that can be decoded")
        self._origin = seconds
        matrix = next((bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
        try:
            self._turn = None if matrix is None else turn_of(matrix)
        except ValueError as error:
            raise VideoError(f"{self.path} cannot be used: {error}") from error
        self.transfer = TRANSFERS.get(int(frame.color_trc))
        self._aspect = stream.sample_aspect_ratio
        width, height = square_size(frame, self._aspect)
        self.size = (width, height) if self._turn in SIDEWAYS else (height, width)

    def _decode(self, start: float) -> Iterator[tuple[float, tuple[int, Any]]]:
        """Every frame from a key frame at or before `start`: (seconds, (index, frame)). Sets `ending`."""
        for back in _SEEK_BACK if start > 0 else ():
            with self._opened() as (container, stream):
                if not self._seek(container, stream, start - back):
                    break
                frames = self._read(container, stream)
                first = next(frames, None)
                if first is not None and first[0] <= start:
                    yield first
                    yield from frames
                    return
        with self._opened() as (container, stream):
            yield from self._read(container, stream)

    def _read(self, container: Any, stream: Any) -> Iterator[tuple[float, tuple[int, Any]]]:
        """Every frame from where the container stands, and at last the ending."""
        self.ending = None
        damaged: list[float] = []
        index, last, fault = 0, 0.0, ""
        for packet in self._packets(container, stream):
            if isinstance(packet, str):
                fault = packet
                break
            for frame in self._decoded(packet, damaged, last):
                seconds = self._seconds(frame, index)
                if index and seconds <= last:
                    continue  # repeated or turned back by damage
                if frame.is_corrupt:
                    damaged.append(seconds)
                yield seconds, (index, frame)
                if self._closed:
                    raise ValueError(
                        f"{self.path} was closed before all of its frames were read: read them inside with"
                    )
                index, last = index + 1, seconds
        self.ending = self._ended(last, damaged, fault)

    def _packets(self, container: Any, stream: Any) -> Iterator[Any]:
        """Packets; at last a word about a file that could not be read on."""
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except self._av.FFmpegError as error:
                yield _reason(error)
                return
            except IndexError:  # PyAV at the end of a file in which a stream began midway, after all packets of ours
                return
            if packet is None:
                return
            yield packet

    def _decoded(self, packet: Any, damaged: list[float], last: float) -> Iterator[Any]:
        try:
            yield from packet.decode()
        except self._av.error.EOFError:
            return
        except self._av.FFmpegError:  # this packet cannot be decoded; the next key frame can
            damaged.append(last)

    def _seek(self, container: Any, stream: Any, start: float) -> bool:
        """Whether that went; raw streams have no index and are decoded from the beginning."""
        try:
            ticks = int((start + self._origin) / stream.time_base)
            container.seek(min(max(ticks, 0), _LAST_TICK), stream=stream)
        except self._av.FFmpegError:
            return False
        return True

    def _seconds(self, frame: Any, index: int) -> float:
        if frame.pts is not None:
            return float(frame.pts * frame.time_base) - self._origin
        if not self.rate:
            raise VideoError(f"{self.path} has neither timestamps nor a frame rate: put it into an .mp4 or .mkv first")
        return index / self.rate  # a raw stream

    def _ended(self, last: float, damaged: list[float], fault: str) -> Ending | None:
        expected, frame = self.duration, 1 / self.rate if self.rate else 0.0
        short = expected is not None and last + frame < expected - max(_SLACK_FRAMES * frame, _SLACK_SECONDS)
        if not (short or damaged or fault):
            return None
        what = []
        if short or fault:
            of = "" if expected is None else f" of {expected:.3f} s"
            what.append(f"ends at {last:.3f} s{of}{f' ({fault})' if fault else ': the file is cut off'}")
        if damaged:
            what.append(f"is damaged at {len(damaged)} places, first at {damaged[0]:.3f} s; frames there may be wrong")
        return Ending(last, expected, len(damaged), " and ".join(what))


def _import_av(path: Path) -> Any:
    """PyAV, with its messages on the console left to us."""
    try:
        import av
    except ImportError as error:
        raise VideoError(f"{path} is a video, and reading it needs PyAV: pip install 'vggt-int8[video]'") from error
    av.logging.set_level(None)
    return av


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
