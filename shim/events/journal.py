"""The events that wait, in a file of the bundle: they outlive the daemon.

One process owns the file at a time, by a lock that ends with it.  An event is
appended, and marked in place when it is acknowledged, which needs no room; when
none waits and the file has grown, it is emptied.  So the usual cost of an event is
two writes to the page cache.  Nothing is synced: an event must survive the daemon,
not the machine, with which the containers end too.

A disk that is full or read-only costs the events nothing: they go on from memory,
which is said once, and the journal is tried again later.

What is in the file is ``shim.events.encoding``; what is kept when there is too
much of it is ``shim.events.backlog``.
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
from shim.events.encoding import DONE, HEADER, decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterable

# Bytes past which the file is written anew, with what waits and nothing else.
SIZE = 8 << 20
# Bytes past which it is emptied when nothing waits: on some disks that takes longer
# than all the rest.
SLACK = 64 << 10
# Bytes of a file, which nobody but us should have written, that are read at most.
_READ = 4 * SIZE
# Seconds after a failure during which the file is left alone.
RETRY = 10.0


@dataclass(slots=True)
class Entry:
    """An event that waits.  ``offset`` is that of its record, -1 without one."""

    payload: bytes
    is_exit: bool
    offset: int = -1

    @property
    def size(self) -> int:
        return HEADER + len(self.payload)


class Journal:
    """The file at ``path``; an empty path is no file, and forgets everything.

    Opened by the first event.  Nothing here raises but :meth:`load`.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._end = 0
        # Whether the file lacks an event that waits, whether a failure was told
        # and is not over, and until when the file is left alone.
        self._stale = False
        self._failing = False
        self._retry_at = 0.0

    def load(self) -> list[tuple[int, bytes]]:
        """Own the file; return the offset and the payload of each event that waits in it.

        :raises FileNotFoundError: there is none, as in most bundles.
        :raises BlockingIOError: another process owns it.
        :raises OSError: it cannot be read, or is no plain file.
        """
        fd = _open_locked(self._path, os.O_RDWR)
        try:
            data = _read(fd)
        except OSError:
            os.close(fd)
            raise
        reading = decode(data)
        if reading.damaged:
            log.warning("the journal is damaged", path=self._path, bytes=reading.damaged)
        self._fd, self._end = fd, reading.end
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
            # Whatever is in there, load() could not make sense of.
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
        """Record that ``entry`` is acknowledged; after the ``last`` one nothing waits."""
        if self._fd < 0:
            # What never came into a file needs none any more.
            self._stale = self._stale and not last
            return
        try:
            if last and (self._stale or self._end > SLACK):
                os.ftruncate(self._fd, 0)
                self._end, self._stale = 0, False
            elif entry.offset >= 0:
                os.pwrite(self._fd, DONE, entry.offset)
        except OSError as exc:
            self._fail(exc)

    def rewrite(self, waiting: Iterable[Entry]) -> None:
        """Replace the file by one with ``waiting`` alone; not while it is left alone."""
        if not self._path or time.monotonic() < self._retry_at:
            return
        draft = f"{os.path.dirname(self._path)}/.{os.path.basename(self._path)}"  # noqa: PTH119, PTH120 - plain strings all along
        fd = -1
        try:
            if self._fd < 0:
                self._open()
            if not self._has_place():
                raise FileNotFoundError("the bundle is gone")
            fd = _open_locked(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            entries = list(waiting)
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
        """Write what a failure kept out of the file, if it is time to try."""
        if self._stale:
            self.rewrite(waiting)

    def _fail(self, exc: OSError) -> None:
        if not self._failing:
            log.warning(
                "if the shim dies, events are lost: the journal cannot be written",
                path=self._path,
                error=exc,
            )
        self._stale = self._failing = True
        self._retry_at = time.monotonic() + RETRY

    def fileno(self) -> int:
        return self._fd

    def close(self, *, remove: bool) -> None:
        """Let go of the file, and ``remove`` it when nothing waits in there."""
        if self._fd < 0:
            return
        if remove and self._has_place():
            _remove(self._path)
        os.close(self._fd)
        self._fd = -1

    def _has_place(self) -> bool:
        """Whether ``path`` is our file: a bundle may be gone, and another have its name."""
        return _is_same(self._path, os.fstat(self._fd))


def is_waiting(path: str) -> bool:
    """Say whether an event waits in the journal at ``path``, whoever owns it.

    :raises OSError: it cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return bool(decode(_read(fd)).waiting)
    finally:
        os.close(fd)


def _open_locked(path: str, flags: int) -> int:
    """Return a plain file that is locked, and is still the one at ``path``.

    :raises BlockingIOError: another process has it, or always another one.
    """
    for _ in range(10):
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        try:
            found = _plain(fd, path)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its owner may have replaced or removed it before we had the lock.
            if _is_same(path, found):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
    raise BlockingIOError(errno.EAGAIN, f"{path} is replaced again and again")


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
        # Half a record would be harmless, and the room it takes is not ours.
        os.ftruncate(fd, offset)
        raise OSError("no room for all of it")


def _remove(path: str) -> None:
    try:
        os.unlink(path)  # noqa: PTH108 - plain strings all along
    except OSError as exc:
        log.debug("a journal is left behind", path=path, error=exc)
