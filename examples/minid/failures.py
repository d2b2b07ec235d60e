"""Errors that affect only one container or one request: they are logged, and shown by ``ps``."""

from __future__ import annotations

import sys

from shimctl import ShimError

EXPECTED = (ShimError, OSError)  # errors of a shim, of minid, and of the host


def log_line(text: str) -> None:
    """Write one line to stderr."""
    sys.stderr.write(f"minid: {printable(text)}\n")
    sys.stderr.flush()


def printable(text: str) -> str:
    """Escape control characters: containers and images choose names and messages."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class Problems:
    """The present problems of one container, by the step that fails.

    Each is logged when it begins; ``ps`` shows those that have not ended.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._texts: dict[str, str] = {}

    def report(self, step: str, text: str) -> None:
        """Log that ``step`` fails, unless the last report was the same; empty: it works."""
        if text and self._texts.get(step) != text:
            log_line(f"{self._name}: {text}")
        self._texts[step] = text

    def __str__(self) -> str:
        return "; ".join(filter(None, self._texts.values()))


def first_in(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error in a group; there is only one, since one task runs at a time."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
