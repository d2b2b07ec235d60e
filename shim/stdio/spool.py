"""Stores output while its reader is away: a ring in a file, or a few bytes in memory.

The file has no name, so that a crash leaves no file, and never grows beyond its
limit.  Bytes are spliced into a file in memory.  They are always copied out of it:
the pages that splice would put into a fifo still belong to the file, and a slow
reader would see them change when the ring overwrites them.

The daemon itself reads and writes a file in memory.  A thread does so on a disk,
which may hang, and the daemon waits for it at most ``WAIT`` seconds.

Source: open(2) O_TMPFILE, splice(2); Linux fs/splice.c for the ownership of pages.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from shim import log
from shim.hostfile import BLOCK, SPOOL
from shim.linux import fifos
from shim.linux.fifos import Fd
from shim.linux.libc import is_in_memory
from shim.linux.modes import make_directories
from shim.offthread import Worker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shim.hostfile import Output

# Seconds that the daemon waits for one operation of a disk; none while one is late.
WAIT = 0.25
# Bytes in one read from the file.
_CHUNK = 1 << 17
# Bytes that a write to a fifo writes completely or not at all.
SMALL = select.PIPE_BUF


class Store(Protocol):
    """Stored bytes, oldest first: ``used`` is their number, ``free`` how many more fit."""

    @property
    def used(self) -> int: ...

    @property
    def free(self) -> int: ...

    # Bytes that were accepted and could not be stored; the relay resets it to 0.
    lost: int

    @property
    def stuck(self) -> bool:
        """Whether the disk does not respond: no byte can be stored or read."""

    @property
    def last(self) -> bytes:
        """The newest byte, or no byte if that is not known."""

    def fill(self, pipe: Fd) -> int:
        """Store the bytes of a pipe; return how many, 0 at its end.

        :raises BlockingIOError: the pipe is empty.
        :raises OSError: they cannot be stored, and are still in the pipe.
        """

    def put(self, data: bytes | memoryview) -> int:
        """Store the beginning of ``data``; return how many bytes.

        :raises OSError: no byte can be stored.
        """

    def write_to(self, sink: Fd) -> int:
        """Write the oldest bytes to ``sink`` and remove them; return how many.

        :raises BlockingIOError: the sink is full.
        :raises OSError: the stored bytes cannot be read.
        """

    def seal(self) -> None:
        """Store no more bytes from now on; ``free`` is then 0."""

    def close(self) -> None: ...


class Ring:
    """A ring buffer of ``limit`` bytes in a file.  It owns ``file``."""

    def __init__(self, file: Fd, limit: int) -> None:
        self.file = file
        self._limit = limit
        self._start = 0  # the offset of the oldest byte
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
        """How many bytes fit before the end of the file, or until the ring is full."""
        return min(self.free, self._limit - self._end)

    def fill(self, pipe: Fd) -> int:
        count = os.splice(
            pipe.number,
            self.file.number,
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
        # Reads little more than the sink accepts.  A fifo that holds small writes
        # accepts less than this difference.
        room = max(SMALL, fifos.PIPE_SIZE - fifos.unread(sink))
        count = min(room, self.used, self._limit - self._start, len(self._buffer))
        count = self._preadv(self._buffer[:count], self._start)
        if not count:
            raise OSError("the spool file is shorter than the output stored in it")
        count = os.write(sink.number, self._buffer[:count])
        self._start = (self._start + count) % self._limit
        self.used -= count
        return count

    def seal(self) -> None:
        self._sealed = True

    @property
    def position(self) -> dict[str, Any]:
        """The arguments of :func:`restore_ring` but the file, plain JSON."""
        return {
            "kind": type(self).__name__,
            "limit": self._limit,
            "start": self._start,
            "used": self.used,
            "sealed": self._sealed,
        }

    def restore(self, start: int, used: int, *, sealed: bool) -> None:
        """Go on from the position of a daemon that was killed."""
        self._start, self.used, self._sealed = start, used, sealed

    def close(self) -> None:
        self.file.close()

    def _pwrite(self, data: bytes | memoryview, offset: int) -> int:
        return os.pwrite(self.file.number, data, offset)

    def _preadv(self, buffer: memoryview, offset: int) -> int:
        return os.preadv(self.file.number, [buffer], offset)

    def _pread(self, offset: int) -> bytes:
        return os.pread(self.file.number, 1, offset)


class ThreadedRing(Ring):
    """A ring on a disk: ``worker`` waits for the disk, and the daemon at most ``WAIT`` seconds."""

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
        # then every system call on the pipe waits, too.
        data = os.read(pipe.number, min(self._span, _CHUNK))
        if not data:
            return 0
        offset = self._end

        def write() -> int:
            try:
                return os.pwrite(self.file.number, data, offset)
            except OSError as exc:
                log.warning("output cannot be spooled", error=exc)
                return 0

        def count_written(count: int) -> None:
            self.used += count
            self.lost += len(data) - count

        count_written(self._worker.do(write, WAIT, count_written))
        return len(data)

    def _pwrite(self, data: bytes | memoryview, offset: int) -> int:
        # The caller repeats the data: a late write is overwritten.
        return self._worker.do(partial(super()._pwrite, bytes(data), offset), WAIT, _ignore)

    def _preadv(self, buffer: memoryview, offset: int) -> int:
        return self._worker.do(partial(super()._preadv, buffer, offset), WAIT, _ignore)

    def _pread(self, offset: int) -> bytes:
        return self._worker.do(partial(super()._pread, offset), WAIT, _ignore)


class FirstBytesInFile(Ring):
    """As :class:`FirstBytes`, in a file in memory, which can survive this process."""

    @classmethod
    def new(cls) -> FirstBytesInFile:
        return cls(Fd(os.memfd_create("trio-shim-output", os.MFD_CLOEXEC)), SMALL)

    def put(self, data: bytes | memoryview) -> int:
        count = super().put(data)
        self.seal()
        return count


def restore_ring(file: Fd, *, kind: str, limit: int, start: int, used: int, sealed: bool) -> Ring:
    """Return the ring in ``file`` of a daemon that was killed; see :attr:`Ring.position`.

    :raises OSError: EAGAIN, the host has no room for a thread.
    """
    ring: Ring
    if kind == ThreadedRing.__name__:
        ring = ThreadedRing(file, limit, Worker())
    else:
        ring = (FirstBytesInFile if kind == FirstBytesInFile.__name__ else Ring)(file, limit)
    ring.restore(start, used, sealed=sealed)
    return ring


def _ignore(result: object) -> None:
    """Drop a result that came too late."""


class FirstBytes:
    """The first bytes that did not fit into the fifo, and no others.

    The marker for the dropped bytes follows them.  The last of these bytes
    determines whether the marker has to begin with a newline.
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
    """Where a process's output goes while no client reads it.

    ``limit`` is in bytes, for one stream.  The file is created in the first of
    ``directories`` where that succeeds; only the first of them is created if it
    does not exist.  Without directories, output that does not fit into the fifo
    is dropped.
    """

    limit: int = 0
    directories: tuple[str, ...] = ()

    @classmethod
    def restore(cls, state: Sequence[Any]) -> Overflow:
        """Return the value whose fields, as a tuple, are ``state``."""
        limit, directories = state
        return cls(limit, tuple(directories))

    @classmethod
    def of(cls, output: Output, bundle: str) -> Overflow | None:
        """Return the value for the policy ``output``; None for ``block``."""
        if output.policy == BLOCK:
            return None
        if output.policy == SPOOL:
            return cls(output.limit, (output.directory, bundle))
        return cls()

    def open(self) -> Store:
        """Return a new store.

        :raises OSError: no file can be created, or the disk does not respond.
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
        """Return a file without a name, and whether its file system is in memory.

        :raises OSError: of the first directory; no directory can hold a file.
        """
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
