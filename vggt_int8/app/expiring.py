"""A temporary folder that deletes files which have not changed for a while, and everything at the end.

Folders left after a kill are removed when the next folder of the same name is created.
"""

import contextlib
import os
import tempfile
import threading
import time
from pathlib import Path

from vggt_int8.files import staging_folder

_OFTEN = 60.0  # seconds between looks, at most


class ExpiringFolder:
    """A new temporary folder with a name prefix, accessible only to this user. seconds: age at which files are
    deleted.
    """

    def __init__(self, name: str, seconds: float) -> None:
        self._held = contextlib.ExitStack()
        self.path = self._held.enter_context(staging_folder(Path(tempfile.gettempdir()) / name))
        self.seconds = seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="forget", daemon=True)
        self._thread.start()

    def forget(self, now: float | None = None) -> None:
        """Delete files that are too old, and folders that are empty afterwards."""
        oldest = (time.time() if now is None else now) - self.seconds
        for parent, _, names in os.walk(self.path, topdown=False):
            for name in names:
                file = Path(parent) / name
                with contextlib.suppress(FileNotFoundError):  # whoever else deleted it did the same
                    if file.lstat().st_mtime < oldest:
                        file.unlink()
            with contextlib.suppress(OSError):  # not empty, or not there any more
                if Path(parent) != self.path and Path(parent).stat().st_mtime < oldest:
                    Path(parent).rmdir()

    def close(self) -> None:
        """Delete everything."""
        self._ended.set()
        self._thread.join()
        self._held.close()

    def _look(self) -> None:
        while not self._ended.wait(min(self.seconds / 2, _OFTEN)):
            self.forget()
