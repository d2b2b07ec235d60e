"""What the preparation of an image reports while it works."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """What is being done and how much of it is, in bytes; a ``total`` of 0 is unknown."""

    what: str
    done: int = 0
    total: int = 0
