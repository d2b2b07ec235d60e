"""The stdin fifo of a process: a client opens it to write after the shim opened it to read.

A fifo keeps its bytes only while a process has it open, and a shim may open its end after
its reply to Start: Go's shim does so in a goroutine.  The input of a client that wrote and
closed before that would be lost.

An open(2) to write that does not block fails with ENXIO until a process has the fifo open
to read, or waits in an open(2) to read.  After it succeeds the reader gets every byte, also
if the client closes its end at once.

Source: fifo(7); Linux fs/pipe.c, fifo_open.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import TYPE_CHECKING

from shim.errors import WrongStateError

if TYPE_CHECKING:
    from collections.abc import Iterator

WAIT = 10  # s for a shim to open its end
_SHORTEST, _LONGEST = 0.001, 0.05  # s between two attempts


def open_writer(path: str) -> int | None:
    """Open a fifo to write, without blocking; return None while no process reads it.

    :raises WrongStateError: it does not exist, or is no fifo.
    """
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    try:
        fd = os.open(path, flags)
    except OSError as exc:
        if exc.errno == errno.ENXIO:
            return None
        raise WrongStateError(f"cannot open stdin {path}: {exc.strerror}") from None
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise WrongStateError(f"cannot write to stdin {path}: it is not a fifo")
    return fd


def pauses() -> Iterator[float]:
    """Give the seconds between the attempts to open a fifo, until ``WAIT`` seconds are over."""
    deadline, pause = time.monotonic() + WAIT, _SHORTEST
    while time.monotonic() < deadline:
        yield pause
        pause = min(2 * pause, _LONGEST)
