"""Errors that affect only one container or one request, and how they are logged."""

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


def first_in(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error in a group; there is only one, since one task runs at a time."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
