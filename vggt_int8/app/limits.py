"""How much of the machine a visitor may take."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """upload_bytes: of one file. images: of one reconstruction. seconds: until what was brought or made is deleted.
    waiting: visitors in the queue.
    """

    upload_bytes: int = 200_000_000
    images: int = 32
    seconds: float = 3600.0
    waiting: int = 16
