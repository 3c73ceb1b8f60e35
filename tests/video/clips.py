"""Short videos, written by PyAV: every frame is known by its gray corner, and every corner by its colour."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

WIDTH, HEIGHT = 64, 48
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def picture(number: int) -> np.ndarray:
    """Top left red, top right green, bottom left blue, bottom right a gray of 10 times the frame's number."""
    image = np.full((HEIGHT, WIDTH, 3), number * 10 % 256, np.uint8)
    image[: HEIGHT // 2, : WIDTH // 2], image[: HEIGHT // 2, WIDTH // 2 :] = RED, GREEN
    image[HEIGHT // 2 :, : WIDTH // 2] = BLUE
    return image


def write_clip(
    path: Path,
    times: Sequence[float] = tuple(i / 10 for i in range(20)),
    *,
    codec: str = "libx264",
    turn: tuple[int, bool, bool] | None = None,  # degrees counter-clockwise, mirrored left to right, upside down
    aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
    noise: Sequence[float] | None = None,  # a frame's fine structure, to tell sharp ones
) -> Path:
    """`times`: seconds of each frame. Key frames every five frames."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", options=options or {}) as container:
        stream: Any = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        stream.options = {"g": "5", "bf": "0", **({"qp": "8"} if codec == "libx264" else {"b": "2000000"})}
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if turn is not None:
            stream.set_display_rotation(turn[0], hflip=turn[1], vflip=turn[2])
        for number, seconds in enumerate(times):
            pixels = picture(number).astype(np.float64)
            if noise is not None:
                pixels += noise[number] * rng.standard_normal((HEIGHT, WIDTH, 1))
            frame = av.VideoFrame.from_ndarray(pixels.clip(0, 255).astype(np.uint8))
            frame.pts, frame.time_base = round(1000 * seconds), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_flat_hdr(path: Path, signal: tuple[float, float, float], transfer: int, width: int = WIDTH) -> Path:
    """One frame of 10 bits, BT.2020, all of one colour: `signal` is the non-linear RGB in [0, 1]."""
    red, green, blue = signal
    luma = 0.2627 * red + 0.6780 * green + 0.0593 * blue
    codes = (64 + 876 * luma, 512 + 896 * (blue - luma) / (2 * (1 - 0.0593)), 512 + 896 * (red - luma) / (2 * 0.7373))
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, HEIGHT, "yuv420p10le"
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc, context.color_range = 9, 9, transfer, 1
        frame: Any = av.VideoFrame(width, HEIGHT, "yuv420p10le")
        for plane, code in zip(frame.planes, codes, strict=True):
            plane.update(np.full(plane.buffer_size // 2, round(code), np.uint16).tobytes())
        frame.colorspace, frame.color_range, frame.pts = 9, 1, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_cover(path: Path) -> Path:
    """Sound alone, with the picture of its cover."""
    with av.open(str(path), "w") as container:
        sound: Any = container.add_stream("aac", rate=44100)
        cover: Any = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(picture(0))
        frame.pts = 0
        container.mux(cover.encode(frame))
        container.mux(cover.encode())
        _write_silence(container, sound, "fltp")
    return path


def write_sound_from_the_middle(path: Path) -> Path:
    """A transport stream of four frames, of which the third comes with the first sound.

    FFmpeg opens such a file with one stream and finds the other while reading, if it lies behind what is probed first,
    and 250 KB before the end. So frames are noise.
    """
    rng = np.random.default_rng(0)
    parts = []
    for first, frames in ((0, 2), (2, 1), (3, 1)):
        with av.open(str(path), "w", format="mpegts") as container:
            stream: Any = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
            stream.options = {"g": "1", "qp": "1", "preset": "ultrafast"}
            sound = container.add_stream("mp2", rate=44100) if first == 2 else None
            for number in range(first, first + frames):
                frame = av.VideoFrame.from_ndarray(rng.integers(0, 256, (480, 640, 3), dtype=np.uint8))
                frame.pts, frame.time_base = number, Fraction(1, 10)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
            if sound is not None:
                _write_silence(container, sound, "s16")
        parts.append(path.read_bytes())
    path.write_bytes(b"".join(parts))
    return path


def _write_silence(container: Any, stream: Any, kind: str) -> None:
    for number in range(10):
        silence = np.zeros((1, 1024), np.float32 if kind == "fltp" else np.int16)
        frame = av.AudioFrame.from_ndarray(silence, format=kind, layout="mono")
        frame.sample_rate, frame.pts = 44100, 1024 * number
        container.mux(stream.encode(frame))
    container.mux(stream.encode())
