"""`model.stream`: what networks that can be loaded have, to run frame after frame (see `vggt_int8.stream`)."""

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any

from vggt_int8.images.fit import Mode
from vggt_int8.stream import OVERLAP, WINDOW, Frames, Stream, StreamReport


class Streaming:
    """A base of loadable networks."""

    def stream(
        self,
        frames: Frames,
        *,
        window: int = WINDOW,
        overlap: int = OVERLAP,
        folder: str | PathLike[str] | None = None,
        loops: bool | None = None,
        mode: Mode = "crop",
        max_pixels: int | None = None,
        fast_jpeg: bool = False,
        global_attention: str | Sequence[str] | None = None,
        keyframes: int | None = None,
        frames_chunk_size: int | None = 8,
        settings: dict[str, Any] | None = None,
        on_window: Callable[[StreamReport], None] | None = None,
    ) -> Stream:
        """Frames, one after another -> an iterable of `StreamFrame`, each a frame's camera and depth in one world.

        frames: an iterable of paths, PIL images, uint8 arrays [H, W, 3] or frames of a `vggt_int8.video.Video`; it may
            be endless. Or a function `frames(n)` that gives one without its first n frames, for `folder`.
        window, overlap: the network sees `window` frames at a time, `overlap` of which it has seen before. Memory is
            that of a window, however long the stream is.
        folder: keep every window there. A stream that was stopped goes on behind the last one if it is made again with
            the same folder and frames, and `stream.scenes()` gives all frames once more after loops were closed.
        loops: look for places that are seen again; by default if there is a folder. Needs the extra `loops`
            (scipy).
        mode, max_pixels, fast_jpeg: as in `load_images`. The first frame decides the size of all.
        global_attention, keyframes, frames_chunk_size: as in a call of the model.
        settings: what else decides the frames; a folder of a stream with other ones is refused.
        on_window: called with the report after every window.

        Raises ValueError or TypeError, naming the value, for options and frames that do not fit.
        """
        call = {"global_attention": global_attention, "keyframes": keyframes, "frames_chunk_size": frames_chunk_size}
        return Stream(
            self, frames, window=window, overlap=overlap, folder=folder, loops=loops, mode=mode, max_pixels=max_pixels,
            fast_jpeg=fast_jpeg, settings=settings, on_window=on_window, **call,
        )  # fmt: skip
