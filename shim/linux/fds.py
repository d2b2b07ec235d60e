"""Closes the fds that a forked process, or a thread with its own fds, must not hold."""

from __future__ import annotations

import os
import resource


def close_all_but(*keep: int) -> None:
    """Close every fd except 0 to 2 and those in ``keep``."""
    first = 3
    for fd in sorted({fd for fd in keep if fd >= first}):
        os.closerange(first, fd)
        first = fd + 1
    close_from(first)


def close_from(first: int) -> None:
    """Close every fd from ``first`` on.

    Those above the soft limit, too: it was higher when they were opened, or it is lower for a
    moment, see :func:`shim.linux.filelimit.limit_of_children`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.closerange(first, soft)
    if soft != hard:
        for name in os.listdir("/proc/thread-self/fd"):  # noqa: PTH208 - names are wanted
            if int(name) >= max(first, soft):
                os.closerange(int(name), int(name) + 1)
