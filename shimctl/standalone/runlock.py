"""The locks of a container's working directory, each a byte of the file ``run.lock``.

A lock belongs to an open file, so it ends with the last process that has it open, however
that process ends, and a child inherits it.  Asking for a lock does not take it.

Source: fcntl(2), "Open file description locks".
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING

from shim.errors import NotFoundError, WrongStateError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE = "run.lock"
_FLOCK = "hhqqi4x"  # struct flock: type, whence, start, length, pid, which must be 0


class Part(IntEnum):
    """The byte of a lock, by its holder."""

    CHANGE = 0  # a command that creates, starts or removes the container
    FOREGROUND = 1  # the `shimctl run` that is attached to it, and removes it at its end
    MONITOR = 2  # this and the number of a run: the process that removes it at its end


_HELD = {
    Part.CHANGE: "another command is starting or removing it; try again",
    Part.MONITOR: "a process that removes it at its end runs already",
    Part.FOREGROUND: "it runs in the foreground of a `shimctl run`, which removes it at its end",
}


def open_file(work: Path) -> int:
    """Open the file of the locks, not for children; the caller closes it.

    :raises NotFoundError: the directory does not exist (any more).
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(work / FILE, flags, 0o600)
    except (FileNotFoundError, NotADirectoryError):
        raise _deleted(work) from None


def take(fd: int, part: Part, work: Path, run: int = 0) -> None:
    """Take a lock of ``work`` for the open file ``fd``; do not wait for it.

    ``run`` is the number of the run that a monitor belongs to.

    :raises WrongStateError: another process holds it.
    :raises NotFoundError: the directory was removed meanwhile.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK, part + run))
    except OSError as exc:
        if exc.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        raise WrongStateError(f"cannot change {work.name}: {_HELD[part]}") from None
    if not os.fstat(fd).st_nlink:
        raise _deleted(work)


@contextmanager
def held(work: Path, part: Part) -> Iterator[None]:
    """Hold a lock of ``work`` for the block; the errors are those of :func:`take`."""
    fd = open_file(work)
    try:
        take(fd, part, work)
        yield
    finally:
        os.close(fd)


@contextmanager
def waited_for(work: Path, part: Part) -> Iterator[None]:
    """Wait until the lock is free, without a limit; hold it for the block.

    :raises NotFoundError: the directory was removed meanwhile.
    """
    fd = open_file(work)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _flock(fcntl.F_WRLCK, part))
        if not os.fstat(fd).st_nlink:
            raise _deleted(work)
        yield
    finally:
        os.close(fd)


def is_held(work: Path, part: Part, run: int = 0) -> bool:
    """Return whether a process holds the lock; False if the directory does not exist."""
    try:
        fd = os.open(work / FILE, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, part + run))
    finally:
        os.close(fd)
    return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)


def _flock(kind: int, byte: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, byte, 1, 0)


def _deleted(work: Path) -> NotFoundError:
    return NotFoundError(f"{work.name} has been removed meanwhile")
