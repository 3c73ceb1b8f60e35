"""Claims: files that say which process is at work on something, and that it still is. For processes on one or more
machines.

A claim is a file that appears with its content, by a hard link, or on file systems without them by exclusive creation;
either is atomic on NFS as well. Its holder touches it every few seconds. Clocks are never compared: a process that
waits for a claim observes whether the file's time *changes* while its own clock runs, and takes the claim over if it
has not changed for `stale_after` seconds. A holder on the same machine whose process is gone is taken over at once.

To take over, a process renames the file away, in which only one succeeds, and checks that it was the claim that it
waited for. Two processes can hold one claim for a moment (if a holder was suspended for a minute and resumes), so a
claim saves work; what must not happen twice has to be safe by itself.
"""

import contextlib
import errno
import json
import os
import secrets
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HEARTBEAT, STALE_AFTER = 10.0, 90.0  # seconds; NFS may show a time that is a minute old
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


@dataclass(frozen=True)
class Holder:
    """Identity of a process among all processes on all machines: kernel, process id namespace, id, and start time."""

    host: str
    boot: str
    namespace: str
    pid: int
    started: str

    @classmethod
    def this(cls) -> "Holder":
        pid = os.getpid()
        return cls(os.uname().nodename, _boot(), _namespace(), pid, _started(pid))

    def is_gone(self) -> bool:
        """Whether it is known to have ended: False if it runs, or is on another machine."""
        here = (self.boot, self.namespace) == (_boot(), _namespace()) and self.boot != ""
        return here and _started(self.pid) != self.started


def _boot() -> str:
    return _text(Path("/proc/sys/kernel/random/boot_id"))


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Start time of a process in kernel ticks; empty if it does not exist, or is a zombie."""
    after_name = _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return "" if not after_name or after_name[0] in "ZX" else after_name[19]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


@dataclass(frozen=True)
class _Seen:
    """The state of another process's claim, and since when, by our clock."""

    mark: tuple[int, int, int]
    since: float


class Claims:
    """This process's claims in `folder`, which it keeps fresh while the block runs, and its observations of others'.

    token: identifies this process to others; by default a new one.
    """

    def __init__(
        self, folder: Path, token: str = "", *, heartbeat: float = HEARTBEAT, stale_after: float = STALE_AFTER
    ) -> None:
        self.folder, self._heartbeat, self._stale_after = folder, heartbeat, stale_after
        self.holder = Holder.this()
        self.token = token or secrets.token_hex(8)
        self._held: set[str] = set()
        self._seen: dict[str, _Seen] = {}
        self._lock, self._end = threading.Lock(), threading.Event()
        self._beating = threading.Thread(target=self._beat, name="claims", daemon=True)

    def __enter__(self) -> "Claims":
        self.folder.mkdir(parents=True, exist_ok=True)
        self._beating.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._beating.join()
        for name in sorted(self._held):
            self.release(name)

    @property
    def held(self) -> set[str]:
        with self._lock:
            return set(self._held)

    def take(self, name: str) -> bool:
        """Whether `name` is ours now: it was free, or its holder is gone."""
        path = self._path(name)
        if not self._create(path):
            before = self._content(path).get("token")  # first: it may be another's by the time that it is judged
            if not self._is_stale(path) or not self._remove(path, before):
                return False
            if not self._create(path):
                return False
        with self._lock:
            self._held.add(name)
        return True

    def release(self, name: str) -> None:
        """Give up a claim of ours, unless another process has taken it over meanwhile."""
        with self._lock:
            self._held.discard(name)
        if self._content(self._path(name)).get("token") == self.token:
            with contextlib.suppress(FileNotFoundError):
                self._path(name).unlink()

    def others(self) -> bool:
        """Whether another process holds a claim that is not known to be stale."""
        theirs = [path for path in self.folder.glob("*.claim") if path.stem not in self.held]
        # Check all, so that they are observed concurrently.
        return sum(self._is_stale(path) for path in theirs) < len(theirs)

    def remove_abandoned(self) -> None:
        """Remove the claims that killed processes of this machine have left."""
        for path in sorted(self.folder.glob("*.claim")):
            content = self._content(path)
            if self._is_abandoned(content):
                self._remove(path, content.get("token"))

    def release_all_of(self, token: str) -> list[str]:
        """Remove the claims of a process that is known to be gone; returns their names."""
        found = [path for path in sorted(self.folder.glob("*.claim")) if self._content(path).get("token") == token]
        for path in found:
            path.unlink(missing_ok=True)
        return [path.stem for path in found]

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.claim"

    def _create(self, path: Path) -> bool:
        content = json.dumps({"token": self.token, "holder": asdict(self.holder)}).encode()
        new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            new.write_bytes(content)
            os.link(new, path)
            return True
        except FileExistsError:
            # A server that answers twice may call our own link somebody else's.
            return new.stat().st_nlink == 2
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
        finally:
            new.unlink(missing_ok=True)
        return _exclusively(path, content)

    def _is_stale(self, path: Path) -> bool:
        """Whether a claim's holder is gone, or has not touched it for so long that it is assumed to be."""
        try:
            descriptor = os.open(path, os.O_RDONLY)  # which makes NFS ask its server
        except FileNotFoundError:
            self._seen.pop(path.stem, None)
            return False  # it is free; the next try takes it
        try:
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        mark, now = (status.st_ino, status.st_mtime_ns, status.st_size), time.monotonic()
        seen = self._seen.get(path.stem)
        if seen is None or seen.mark != mark:
            self._seen[path.stem] = seen = _Seen(mark, now)
        return self._is_abandoned(self._content(path)) or now - seen.since > self._stale_after

    def _is_abandoned(self, content: dict[str, Any]) -> bool:
        """Whether the process that a claim names has run on this machine and has ended."""
        holder = content.get("holder")
        if not isinstance(holder, dict) or holder.keys() != asdict(self.holder).keys():
            return False
        return Holder(**holder).is_gone()

    def _remove(self, path: Path, before: str | None) -> bool:
        """Rename the stale claim of token `before` away; returns False if it was another one by then, which is put
        back.
        """
        away = path.with_name(f".{path.name}.gone-{secrets.token_hex(4)}")
        try:
            path.rename(away)
        except FileNotFoundError:
            return False
        self._seen.pop(path.stem, None)
        ours = self._content(away).get("token") == before
        if not ours:
            with contextlib.suppress(OSError):  # somebody else has it by now
                os.link(away, path)
        away.unlink(missing_ok=True)
        return ours

    def _content(self, path: Path) -> dict[str, Any]:
        """Of a claim; empty for one that is gone, or that was cut off while it was written."""
        try:
            found = json.loads(_text(path))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _beat(self) -> None:
        while not self._end.wait(self._heartbeat):
            for name in self.held:
                # Taken over; or a server that is away for a while, which must not end the thread that tries again.
                with contextlib.suppress(OSError):
                    os.utime(self._path(name))


def _exclusively(path: Path, content: bytes) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    return True
