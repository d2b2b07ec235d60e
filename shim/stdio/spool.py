"""Where output waits for a reader that is away: a ring in a file, or a few bytes in memory.

The file has no name, so that a crash leaves nothing of it, and never grows
beyond its limit.  What goes into it is spliced, in memory.  What comes out is copied: the
pages that splice would put into a fifo remain the file's, and would change
under a slow reader when the ring comes round to them.

In memory the daemon does both.  On a disk, which may hang, a thread does, and the
daemon waits for a moment only.

Source: open(2) O_TMPFILE, splice(2); Linux fs/splice.c for whose the pages are.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from shim import log
from shim.hostfile import BLOCK, SPOOL
from shim.linux import fifos
from shim.linux.fifos import Fd
from shim.linux.libc import is_in_memory
from shim.linux.modes import make_directories
from shim.offthread import Worker

if TYPE_CHECKING:
    from shim.hostfile import Output

# Seconds the daemon waits for a disk, until it has responded again.
WAIT = 0.25
# Bytes in one read from the file.
_CHUNK = 1 << 17
# What a write to a fifo takes whole or not at all.
SMALL = select.PIPE_BUF


class Store(Protocol):
    """Bytes that wait, oldest first.  ``used`` is how many, ``free`` how many more fit."""

    @property
    def used(self) -> int: ...

    @property
    def free(self) -> int: ...

    # Bytes that were taken and could not be kept; who counts them sets it to 0.
    lost: int

    @property
    def stuck(self) -> bool:
        """Whether its disk does not respond: nothing can be taken or given."""

    @property
    def last(self) -> bytes:
        """The byte that came last, or nothing if that is not known."""

    def fill(self, pipe: Fd) -> int:
        """Take what is in a pipe; return how many bytes, 0 at its end.

        :raises BlockingIOError: there is nothing.
        :raises OSError: it cannot be kept, and is still in the pipe.
        """

    def put(self, data: bytes | memoryview) -> int:
        """Take the beginning of ``data``; return how many bytes.

        :raises OSError: nothing of it can be kept.
        """

    def write_to(self, sink: Fd) -> int:
        """Write the oldest bytes; return how many.

        :raises BlockingIOError: there is no room for any.
        :raises OSError: they cannot be read any more.
        """

    def seal(self) -> None:
        """Take nothing from now on."""

    def close(self) -> None: ...


class Ring:
    """A file that is written round and round.  It owns ``file``."""

    def __init__(self, file: Fd, limit: int) -> None:
        self._file = file
        self._limit = limit
        self._start = 0  # where the oldest byte is
        self._sealed = False
        self._buffer = memoryview(bytearray(min(_CHUNK, limit)))
        self.used = 0
        self.lost = 0

    @property
    def stuck(self) -> bool:
        return False

    @property
    def free(self) -> int:
        return 0 if self._sealed else self._limit - self.used

    @property
    def last(self) -> bytes:
        with suppress(OSError):
            return self._pread((self._end - 1) % self._limit)
        return b""

    @property
    def _end(self) -> int:
        return (self._start + self.used) % self._limit

    @property
    def _span(self) -> int:
        """How many bytes fit before the ring comes round, or is full."""
        return min(self.free, self._limit - self._end)

    def fill(self, pipe: Fd) -> int:
        count = os.splice(
            pipe.number,
            self._file.number,
            min(self._span, fifos.PIPE_SIZE),
            offset_dst=self._end,
            flags=os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK,
        )
        self.used += count
        return count

    def put(self, data: bytes | memoryview) -> int:
        count = self._pwrite(data[: self._span], self._end)
        self.used += count
        return count

    def write_to(self, sink: Fd) -> int:
        # Not much more than there is room for; a fifo of small pieces has less.
        room = max(SMALL, fifos.PIPE_SIZE - fifos.unread(sink))
        count = min(room, self.used, self._limit - self._start, len(self._buffer))
        count = self._preadv(self._buffer[:count], self._start)
        if not count:
            raise OSError("the spooled output is gone from its file")
        count = os.write(sink.number, self._buffer[:count])
        self._start = (self._start + count) % self._limit
        self.used -= count
        return count

    def seal(self) -> None:
        self._sealed = True

    def close(self) -> None:
        self._file.close()

    def _pwrite(self, data: bytes | memoryview, offset: int) -> int:
        return os.pwrite(self._file.number, data, offset)

    def _preadv(self, buffer: memoryview, offset: int) -> int:
        return os.preadv(self._file.number, [buffer], offset)

    def _pread(self, offset: int) -> bytes:
        return os.pread(self._file.number, 1, offset)


class ThreadedRing(Ring):
    """A ring on a disk: ``worker`` waits for the disk, and the daemon for ``WAIT`` at most."""

    def __init__(self, file: Fd, limit: int, worker: Worker) -> None:
        super().__init__(file, limit)
        self._worker = worker

    @property
    def stuck(self) -> bool:
        return self._worker.stuck

    @property
    def free(self) -> int:
        return 0 if self.stuck else super().free

    def close(self) -> None:
        super().close()
        self._worker.close()

    def fill(self, pipe: Fd) -> int:
        # Not spliced: a splice holds the pipe's lock while it waits for the disk, and
        # then every look at the pipe waits, too.
        data = os.read(pipe.number, min(self._span, _CHUNK))
        if not data:
            return 0
        offset = self._end

        def write() -> int:
            try:
                return os.pwrite(self._file.number, data, offset)
            except OSError as exc:
                log.warning("output cannot be spooled", error=exc)
                return 0

        def count_written(count: int) -> None:
            self.used += count
            self.lost += len(data) - count

        count_written(self._worker.do(write, WAIT, count_written))
        return len(data)

    def _pwrite(self, data: bytes | memoryview, offset: int) -> int:
        # Its caller still has the data: what is written late is written over.
        return self._worker.do(partial(super()._pwrite, bytes(data), offset), WAIT, _ignore)

    def _preadv(self, buffer: memoryview, offset: int) -> int:
        return self._worker.do(partial(super()._preadv, buffer, offset), WAIT, _ignore)

    def _pread(self, offset: int) -> bytes:
        return self._worker.do(partial(super()._pread, offset), WAIT, _ignore)


def _ignore(result: object) -> None:
    """Do nothing with a result that nobody needs any more."""


class FirstBytes:
    """The first bytes there was no room for, and no more.

    It is what a marker follows that says how many were dropped: so it is known
    whether that begins on a line of its own.
    """

    def __init__(self) -> None:
        self._data = b""
        self._sealed = False
        self.last = b""
        self.stuck = False
        self.lost = 0

    @property
    def used(self) -> int:
        return len(self._data)

    @property
    def free(self) -> int:
        return 0 if self._sealed else SMALL

    def fill(self, pipe: Fd) -> int:
        return self.put(os.read(pipe.number, SMALL))

    def put(self, data: bytes | memoryview) -> int:
        self._data = bytes(data[:SMALL])
        self.last = self._data[-1:]
        self._sealed = True
        return len(self._data)

    def write_to(self, sink: Fd) -> int:
        count = os.write(sink.number, self._data)
        self._data = self._data[count:]
        return count

    def seal(self) -> None:
        self._sealed = True

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Overflow:
    """What there is for the output of a process when nobody reads.

    ``limit`` is in bytes, for one stream.  The first of ``directories`` that
    can hold a file does; the first of all is made if it is not there.  Without
    any, what does not fit into a fifo is dropped.
    """

    limit: int = 0
    directories: tuple[str, ...] = ()

    @classmethod
    def of(cls, output: Output, bundle: str) -> Overflow | None:
        """Return what ``output`` asks for; None is to wait for a reader."""
        if output.policy == BLOCK:
            return None
        if output.policy == SPOOL:
            return cls(output.limit, (output.directory, bundle))
        return cls()

    def open(self) -> Store:
        """Return a place for what comes next.

        :raises OSError: there is none on disk.
        """
        if not self.directories:
            return FirstBytes()
        worker = Worker()
        try:
            file, in_memory = worker.do(self._open_file, WAIT, lambda found: found[0].close())
        except OSError:
            worker.close()
            raise
        if not in_memory:
            return ThreadedRing(file, self.limit, worker)
        worker.close()
        return Ring(file, self.limit)

    def _open_file(self) -> tuple[Fd, bool]:
        """Return a file without a name, and whether it is in memory."""
        failure: OSError | None = None
        for directory in self.directories:
            try:
                if directory == self.directories[0]:
                    make_directories(directory)
                flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
                return Fd(os.open(directory, flags, 0o600)), is_in_memory(directory)
            except OSError as exc:
                failure = failure or exc
        assert failure is not None
        raise failure
