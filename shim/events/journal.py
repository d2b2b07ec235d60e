"""The file of a bundle that keeps undelivered events after the daemon's death.

One process at a time owns the file, by a lock that the kernel releases when the
process ends.  An event is appended, and marked in place when it is acknowledged,
which needs no disk space.  When no event is left and the file has grown, it is
truncated.  The usual cost of an event is two writes to the page cache.  The file is
not synced: an event must survive the daemon's death, but the containers do not
survive the machine's.

If the disk is full or read-only, events are delivered from memory.  One warning is
logged, and the file is written again later.

``shim.events.encoding`` defines the file's format, ``shim.events.backlog`` the limits.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shim import log
from shim.events.encoding import DONE, HEADER, decode, encode, payloads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# Bytes past which the file is rewritten with the undelivered events only.
SIZE = 8 << 20
# Bytes past which the file is truncated when no event is left.  Not at every such
# time: on some disks to truncate takes longer than all other operations.
SLACK = 64 << 10
# Bytes that are read at most of a file that another program may have written.
_READ = 4 * SIZE
# Seconds after a failure before the file is written again.
RETRY = 10.0


@dataclass(slots=True)
class Entry:
    """An undelivered event.  ``offset`` is that of its record in bytes, -1 without one.

    ``number`` orders the events of all journals of this process.
    """

    payload: bytes
    is_exit: bool
    offset: int = -1
    number: int = 0

    @property
    def size(self) -> int:
        return HEADER + len(self.payload)


class Journal:
    """The file at ``path``; with an empty path no event is written.

    The first event opens the file.  Only :meth:`load` raises.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._end = 0
        # The payload of the last event in the file at load(), delivered or not.
        self.last_loaded = b""
        # Called before delivered events are removed from the file.
        self.before_forgetting: Callable[[], None] = _nothing
        # Whether the file lacks an undelivered event, whether a failure was logged and
        # persists, and the monotonic time before which the file is not written again.
        self._stale = False
        self._failing = False
        self._retry_at = 0.0

    def load(self) -> list[tuple[int, bytes]]:
        """Own the file; return the offset and the payload of each undelivered event in it.

        :raises FileNotFoundError: the file does not exist, as in most bundles.
        :raises BlockingIOError: another process owns it.
        :raises OSError: it cannot be read, or is not a plain file.
        """
        return self.adopt(_open_locked(self._path, os.O_RDWR))

    def adopt(self, fd: int) -> list[tuple[int, bytes]]:
        """As :meth:`load`, with the open and locked file ``fd``, which may have been removed.

        :raises OSError: it cannot be read.
        """
        try:
            data = _read(fd)
        except OSError:
            os.close(fd)
            raise
        reading = decode(data)
        if reading.damaged:
            log.warning(
                "events may be lost: the journal is damaged",
                path=self._path,
                bytes=reading.damaged,
            )
        self._fd, self._end, self.last_loaded = fd, reading.end, reading.last
        return [(record.offset, record.payload) for record in reading.waiting]

    def write(self, waiting: Iterable[Entry], new: Entry) -> None:
        """Append ``new``, the last of ``waiting``."""
        if not self._path:
            return
        if self._failing or self._stale or self._end + new.size > SIZE:
            self._stale = True
            self.rewrite(waiting)
            return
        try:
            if self._fd < 0:
                self._open()
            self._append(new)
        except OSError as exc:
            self._fail(exc)

    def _open(self) -> None:
        fd = _open_locked(self._path, os.O_RDWR | os.O_CREAT)
        try:
            # load() could not read the content.
            os.ftruncate(fd, 0)
        except OSError:
            os.close(fd)
            raise
        self._fd, self._end = fd, 0

    def _append(self, new: Entry) -> None:
        _write(self._fd, encode(new.payload), self._end)
        new.offset = self._end
        self._end += new.size

    def mark(self, entry: Entry, *, last: bool) -> None:
        """Record that ``entry`` is acknowledged; with ``last`` no event is left."""
        if self._fd < 0:
            # Without a file the acknowledged events need no record.
            self._stale = self._stale and not last
            return
        try:
            if last and (self._stale or self._end > SLACK):
                self.before_forgetting()
                os.ftruncate(self._fd, 0)
                self._end, self._stale = 0, False
            elif entry.offset >= 0:
                os.pwrite(self._fd, DONE, entry.offset)
        except OSError as exc:
            self._fail(exc)

    def rewrite(self, waiting: Iterable[Entry]) -> None:
        """Replace the file by one that has only ``waiting``; not within RETRY of a failure."""
        if not self._path or time.monotonic() < self._retry_at:
            return
        draft = f"{os.path.dirname(self._path)}/.{os.path.basename(self._path)}"  # noqa: PTH119, PTH120 - plain strings all along
        fd = -1
        try:
            if self._fd < 0:
                self._open()
            if not self._has_place():
                raise FileNotFoundError("the bundle was removed")
            fd = _open_locked(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            entries = list(waiting)
            self.before_forgetting()
            _write(fd, b"".join(encode(entry.payload) for entry in entries), 0)
            os.rename(draft, self._path)  # noqa: PTH104 - as above
        except OSError as exc:
            if fd >= 0:
                os.close(fd)
                _remove(draft)
            self._fail(exc)
            return
        os.close(self._fd)
        self._fd, self._end = fd, 0
        for entry in entries:
            entry.offset = self._end
            self._end += entry.size
        if self._failing:
            log.info("the journal can be written again", path=self._path)
        self._stale = self._failing = False

    def retry(self, waiting: Iterable[Entry]) -> None:
        """Write the events that the file lacks after a failure, RETRY seconds after it."""
        if self._stale:
            self.rewrite(waiting)

    def _fail(self, exc: OSError) -> None:
        if not self._failing:
            log.warning(
                "events are in memory only: the journal cannot be written",
                path=self._path,
                error=exc,
            )
        self._stale = self._failing = True
        self._retry_at = time.monotonic() + RETRY

    def fileno(self) -> int:
        return self._fd

    def close(self, *, remove: bool) -> None:
        """Close the file; ``remove`` it if it has no undelivered event."""
        if self._fd < 0:
            return
        if remove and self._has_place():
            _remove(self._path)
        os.close(self._fd)
        self._fd = -1

    def is_in_place(self) -> bool:
        """Return whether the next event is written to the file at ``path``.

        A new bundle may have the name of the one with this file.
        """
        return self._fd < 0 or self._has_place()

    def _has_place(self) -> bool:
        return _is_same(self._path, os.fstat(self._fd))


def _nothing() -> None:
    pass


def is_waiting(path: str) -> bool:
    """Return whether the journal at ``path`` has an undelivered event, without owning it.

    :raises OSError: it cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return bool(decode(_read(fd)).waiting)
    finally:
        os.close(fd)


def all_payloads(path: str) -> list[bytes]:
    """Return every event in the journal at ``path``, the acknowledged ones too.

    :raises OSError: it cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return list(payloads(_read(fd)))
    finally:
        os.close(fd)


def _open_locked(path: str, flags: int) -> int:
    """Open and lock the plain file at ``path``; return its fd.

    :raises BlockingIOError: another process owns it, or the file is replaced repeatedly.
    :raises OSError: it cannot be opened, or is not a plain file.
    """
    for _ in range(10):
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        try:
            found = _plain(fd, path)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its earlier owner may have replaced or removed it before the lock was taken.
            if _is_same(path, found):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
    raise BlockingIOError(errno.EAGAIN, f"{path} is replaced repeatedly")


def _plain(fd: int, path: str) -> os.stat_result:
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise FileExistsError(f"{path} is not a plain file; remove it")
    return found


def _is_same(path: str, found: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.lstat(path), found)
    except OSError:
        return False


def _read(fd: int) -> bytes:
    data = b""
    while len(data) < _READ and (chunk := os.pread(fd, _READ - len(data), len(data))):
        data += chunk
    return data


def _write(fd: int, data: bytes, offset: int) -> None:
    written = os.pwrite(fd, data, offset)
    if written != len(data):
        # A partial record would be harmless, but takes disk space.
        os.ftruncate(fd, offset)
        raise OSError("no space left on device")


def _remove(path: str) -> None:
    try:
        os.unlink(path)  # noqa: PTH108 - plain strings all along
    except OSError as exc:
        log.debug("cannot remove a journal", path=path, error=exc)
