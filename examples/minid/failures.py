"""What may go wrong and costs nobody but its own container: it is said, in one line."""

from __future__ import annotations

import sys

from shimctl import ShimError

EXPECTED = (ShimError, OSError)  # a shim's or our own refusal, and the host's


def log_line(text: str) -> None:
    sys.stderr.write(f"minid: {printable(text)}\n")
    sys.stderr.flush()


def printable(text: str) -> str:
    """Escape what a terminal would obey: containers and images choose names and messages."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def first_in(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error inside; there is one, as one thing happens at a time."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
