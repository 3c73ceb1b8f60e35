"""A worker thread that executes only the newest request and drops older ones that have not started.

For example, a slider requests a new point cloud at each step.
"""

import threading
from collections.abc import Callable


class Latest:
    """Runs the most recent requested function, one at a time. The first error stops the worker and is stored."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._wanted: Callable[[], None] | None = None
        self._busy = self._closed = False
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="viewer", daemon=True)
        self._thread.start()

    def request(self, work: Callable[[], None]) -> None:
        """Run this next. Earlier requests that have not started are dropped."""
        with self._changed:
            self._wanted = work
            self._changed.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until there is no work left, and raise the worker's error if there was one. Returns False after the
        timeout.
        """
        with self._changed:
            idle = self._changed.wait_for(
                lambda: self.error is not None or self._closed or not (self._busy or self._wanted), timeout
            )
        if self.error is not None:
            raise self.error
        return idle

    def wait_for_error(self, timeout: float | None = None) -> None:
        """Wait until an error stops the worker, which is raised, until it is closed, or until the timeout."""
        with self._changed:
            self._changed.wait_for(lambda: self.error is not None or self._closed, timeout)
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """Accept no more work, and wait for the current function."""
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
