"""Limits on the resources that a user of the page can use."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """upload_bytes: size limit of one file.
    images: limit for one reconstruction.
    seconds: age at which uploads and results are deleted.
    waiting: users in the queue.
    """

    upload_bytes: int = 200_000_000
    images: int = 32
    seconds: float = 3600.0
    waiting: int = 16
