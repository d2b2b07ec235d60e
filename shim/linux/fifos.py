"""Opens pipes and fifos without blocking, and queries them.

A fifo opened O_RDWR has both of its ends: opening it does not wait for a peer,
writing to it never fails with EPIPE, and unread data stays in it while no reader
has it open.

Source: fifo(7), pipe(7), fcntl(2) F_SETPIPE_SZ.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import stat
import termios
from typing import TYPE_CHECKING

from shim.errors import InvalidError, NotFoundError
from shim.text import doing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# The default of /proc/sys/fs/pipe-max-size, in bytes.
PIPE_SIZE = 1 << 20

# Errors of open(2) and stat(2) for a path that cannot be read or written as a stream.
_NO_STREAM = {errno.EISDIR, errno.ELOOP, errno.ENOTDIR, errno.EEXIST}


class Fd:
    """A file descriptor that its holder closes; a second close does nothing.

    ``number`` is -1 once it is closed.  ``closing`` is called at the first close.
    """

    __slots__ = ("closing", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.closing: Callable[[], None] | None = None

    def close(self) -> None:
        number, self.number = self.number, -1
        if number >= 0:
            os.close(number)
            if self.closing is not None:
                self.closing()


def is_fifo(path: str) -> bool:
    """Return whether ``path`` is a fifo, or a symbolic link to one.

    :raises NotFoundError: there is nothing at ``path``.
    :raises InvalidError: ``path`` goes through a file, or a loop of links.
    """
    with explained(path):
        return stat.S_ISFIFO(os.stat(path).st_mode)  # noqa: PTH116 - a plain string all along


@contextlib.contextmanager
def explained(path: str) -> Iterator[None]:
    """Convert an OSError of the block into the reason why ``path`` cannot be a stream.

    :raises NotFoundError: there is nothing at ``path``.
    :raises InvalidError: ``path`` is a directory, a socket or a loop of links.
    """
    try:
        with doing("open", path):
            yield
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such fifo; create it before the process") from None
    except OSError as exc:
        no_device = exc.errno == errno.ENXIO and not is_fifo(path)
        if exc.errno in _NO_STREAM or no_device:
            raise InvalidError(
                f"{path} cannot be a stream ({exc.strerror}); use a fifo or a file"
            ) from None
        raise


def open_file(path: str, flags: int) -> Fd:
    """Open the file or device at ``path``, which a manager gave instead of a fifo.

    :raises NotFoundError: there is nothing at ``path``.
    :raises InvalidError: ``path`` cannot be a stream, a directory for example.
    """
    with explained(path):
        fd = Fd(os.open(path, flags | os.O_CLOEXEC | os.O_NOCTTY, 0o644))
    if stat.S_ISDIR(os.fstat(fd.number).st_mode):
        fd.close()
        raise InvalidError(f"{path} cannot be a stream (Is a directory); use a fifo or a file")
    return fd


def open_keep(path: str) -> Fd:
    """Open both ends of the fifo at ``path``, so that a write needs no reader."""
    return _open(path, os.O_RDWR)


def open_reader(path: str) -> Fd:
    """Open the fifo at ``path`` to read; a read returns the end while it has no writer."""
    return _open(path, os.O_RDONLY)


def open_writer(path: str) -> Fd:
    """Open the fifo at ``path`` to write.

    :raises OSError: ENXIO, no process has it open to read.
    """
    return _open(path, os.O_WRONLY)


def close_reader(both: Fd) -> None:
    """Keep only the write end of a fifo that is open at both, even if it was unlinked."""
    writer = reopen(both, os.O_WRONLY)
    os.close(both.number)  # not both.close(): the fifo stays open
    both.number = writer.number


def reopen(fd: Fd, access: int) -> Fd:
    """Open a pipe or fifo again, with other access, even if it was unlinked.

    :raises OSError: ENXIO, it is opened to write and no process has it open to read.
    """
    path = f"/proc/self/fd/{fd.number}"
    return Fd(os.open(path, access | os.O_NONBLOCK | os.O_CLOEXEC))


def _open(path: str, access: int) -> Fd:
    with explained(path):
        fd = Fd(os.open(path, access | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY))
    if not stat.S_ISFIFO(os.fstat(fd.number).st_mode):
        fd.close()
        raise InvalidError(f"{path} is not a fifo")
    return fd


def open_pipe(uid: int = -1, gid: int = -1) -> tuple[Fd, Fd]:
    """Return the read and the write end of a new large pipe, both blocking.

    ``uid`` and ``gid`` become its owner: a process needs that to open /dev/stdout.
    """
    with doing("create", "a pipe"):
        reader, writer = (Fd(number) for number in os.pipe2(os.O_CLOEXEC))
    try:
        grow(writer)
        if uid > 0 or gid > 0:
            os.fchown(writer.number, uid, gid)
    except BaseException:
        reader.close()
        writer.close()
        raise
    return reader, writer


def grow(fd: Fd, size: int = PIPE_SIZE) -> None:
    """Make room for ``size`` bytes in a pipe, if the host's limits allow it."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd.number, fcntl.F_SETPIPE_SZ, size)


def unread(fd: Fd) -> int:
    """Return how many bytes wait in a pipe."""
    count = fcntl.ioctl(fd.number, termios.FIONREAD, b"\0\0\0\0")
    return int.from_bytes(count, "little")


def has_reader(writer: Fd) -> bool:
    """Return whether a process has the pipe of this write-only end open to read."""
    return not _poll(writer, 0) & select.POLLERR


def has_input(reader: Fd) -> bool:
    """Return whether a read would return bytes at once.  Works on a terminal too."""
    return bool(_poll(reader, select.POLLIN) & select.POLLIN)


def at_end(reader: Fd) -> bool:
    """Return whether a pipe is empty and has no writer any more."""
    return _poll(reader, select.POLLIN) == select.POLLHUP


def _poll(fd: Fd, events: int) -> int:
    poll = select.poll()
    poll.register(fd.number, events)
    ready = poll.poll(0)
    return ready[0][1] if ready else 0
