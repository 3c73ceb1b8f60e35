"""Repositories of the stand-in: commits that are whole trees, and the errors that the Hub answers with."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any


class HubError(Exception):
    """An answer other than 2xx. `code` is the Hub's X-Error-Code, which the client maps to its exceptions."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str = "",
        expected: bool = False,
        body: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code = status, code
        self.body = body or {"error": message}
        self.expected = expected  # part of a normal conversation: not a failure of the client


@dataclass(frozen=True)
class File:
    """One file of a commit: its git blob id, its size, and its sha256 if it is an LFS object."""

    oid: str
    size: int
    sha256: str | None = None


@dataclass
class Repo:
    """Commits by id, each a whole tree, and branches that point to them."""

    id: str
    private: bool = False
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit("main", {}, "initial commit")

    def commit(self, branch: str, tree: dict[str, File], message: str) -> str:
        state = [self.id, self.branches.get(branch), message, sorted((p, f.oid) for p, f in tree.items())]
        sha = hashlib.sha1(json.dumps(state).encode()).hexdigest()
        self.commits[sha] = tree
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str:
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound", expected=True)
        return sha


def checked_path(path: str) -> str:
    if not path or path.startswith("/") or any(part in ("", ".", "..", ".git") for part in path.split("/")):
        raise HubError(400, f"Invalid path in repository: {path!r}")
    return path


def decode_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise HubError(400, f"Not base64: {text[:40]!r}") from error


def git_blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
