"""The progress reports of the preparation of an image."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the preparation and its progress in bytes; a ``total`` of 0 is unknown."""

    what: str
    done: int = 0
    total: int = 0
