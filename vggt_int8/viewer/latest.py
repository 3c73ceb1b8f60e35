"""Work that is asked for faster than it can be done: a thread that does the newest request and forgets those before.

A slider asks for a new point cloud at each of its steps.
"""

import threading
from collections.abc import Callable


class Latest:
    """Runs the newest of the requested functions, one at a time; the first error stops it and is kept."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._wanted: Callable[[], None] | None = None
        self._busy = self._closed = False
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="viewer", daemon=True)
        self._thread.start()

    def request(self, work: Callable[[], None]) -> None:
        """Do this next; what was requested before and has not begun is dropped."""
        with self._changed:
            self._wanted = work
            self._changed.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Until nothing is left to do, or an error has ended it; raises that error. False after the timeout."""
        with self._changed:
            idle = self._changed.wait_for(
                lambda: self.error is not None or self._closed or not (self._busy or self._wanted), timeout
            )
        if self.error is not None:
            raise self.error
        return idle

    def wait_for_error(self, timeout: float | None = None) -> None:
        """Until an error has ended it, which is raised, or it was closed, or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self.error is not None or self._closed, timeout)
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """No more work; returns when the last piece is done."""
        with self._changed:
            self._closed, self._wanted = True, None
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closed or self._wanted is not None)
                if self._wanted is None:
                    return
                work, self._wanted, self._busy = self._wanted, None, True
            try:
                work()
            except BaseException as error:  # whoever waits raises it
                with self._changed:
                    self.error = error
                    self._changed.notify_all()
                return
