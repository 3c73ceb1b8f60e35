"""`model.stream`: runs a loadable network on a stream of frames (see `vggt_int8.stream`)."""

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any

from vggt_int8.images.fit import Mode
from vggt_int8.stream import OVERLAP, WINDOW, Frames, Stream, StreamReport


class Streaming:
    """Mixin for loadable networks."""

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
        """A stream of frames -> an iterable of `StreamFrame`, each with a frame's camera and depth in one world frame.

        frames: an iterable of paths, PIL images, uint8 arrays [H, W, 3] or frames of a `vggt_int8.video.Video`; it may
            be infinite. Or, with `folder`, a function `frames(n)` that returns one without its first n frames.
        window, overlap: the network sees `window` frames at a time, `overlap` of which it has seen before. Memory is
            that of one window, however long the stream is.
        folder: store every window there. A stopped stream resumes after the last window if it is created again with the
            same folder and frames, and `stream.scenes()` yields all frames once more after loop closure.
        loops: detect loop closures; by default if there is a folder. Needs the extra `loops` (scipy).
        mode, max_pixels, fast_jpeg: as in `load_images`. The first frame determines the size of all.
        global_attention, keyframes, frames_chunk_size: as in a call of the model.
        settings: everything else that determines the frames; a folder of a stream with other settings is refused.
        on_window: called with the report after every window.

        Raises ValueError or TypeError, naming the value, for invalid options and frames.
        """
        call = {"global_attention": global_attention, "keyframes": keyframes, "frames_chunk_size": frames_chunk_size}
        return Stream(
            self, frames, window=window, overlap=overlap, folder=folder, loops=loops, mode=mode, max_pixels=max_pixels,
            fast_jpeg=fast_jpeg, settings=settings, on_window=on_window, **call,
        )  # fmt: skip
