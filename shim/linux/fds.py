"""Closes the fds that a forked process, or a thread with its own fds, must not hold."""

from __future__ import annotations

import os


def close_all_but(*keep: int) -> None:
    """Close every fd except 0 to 2 and those in ``keep``."""
    first = 3
    for fd in sorted({fd for fd in keep if fd >= first}):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))
