"""What may go wrong and costs nobody but its own container: it is said, in one line."""

from __future__ import annotations

import sys

from shimctl import ShimError

EXPECTED = (ShimError, OSError)  # a shim's or our own refusal, and the host's


def say(text: str) -> None:
    sys.stderr.write(f"minid: {text}\n")
    sys.stderr.flush()


def first_in(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error inside; there is one, as one thing happens at a time."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
