"""Read and follow the logs of detached containers: CRI logs and plain files.

A CRI log has one entry per line, as :mod:`shimctl.standalone.logger` and the CRI
plugins write it; the preceding file may exist as ``FILE.1``.  Any other file is
printed unchanged, without times.  A follower reads every ``POLL`` seconds and
changes to the next file once the last is complete.  It stops when ``is_over``
returns true, all is read, and no process has the log open to write or none has
written for ``_QUIET`` seconds.

Source: kubernetes, "CRI logging" and its log format; fcntl(2), F_GETLK.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
import sys
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Self

import trio

from shim.errors import InvalidError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

POLL = 0.1  # s between two reads
_QUIET = 0.5  # s without output after the exit; then the log counts as complete
_CHUNK = 256 * 1024  # bytes of one read
_ENTRY = re.compile(
    rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)) "
    rb"(stdout|stderr) ([FP])(?::[^ ]*)? (.*)",
    re.DOTALL,
)
_DURATION = re.compile(r"(?=.)(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?")
_FLOCK = "hhqqi"  # struct flock: type, whence, start, length, pid


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a log, or the beginning of one if ``ends`` is false."""

    time: bytes  # RFC 3339, as it is in the log
    stream: bytes
    ends: bool
    content: bytes

    @property
    def at(self) -> datetime:
        """The time, to the microsecond."""
        return datetime.fromisoformat(self.time.decode())


@dataclass(frozen=True, slots=True)
class Wanted:
    """The part of a log to print, and its form; ``tail`` counts lines, None is all."""

    since: datetime | None = None
    tail: int | None = None
    timestamps: bool = False


def parse_entry(line: bytes) -> Entry | None:
    """Parse one line of a CRI log; return None if it is not one."""
    found = _ENTRY.fullmatch(line)
    if found is None:
        return None
    try:
        datetime.fromisoformat(found[1].decode())
    except ValueError:
        return None  # not a date, such as February 31
    return Entry(found[1], found[2], found[3] == b"F", found[4])


def parse_since(text: str, now: datetime) -> datetime:
    """Parse a time in RFC 3339, or an age such as ``10m``, ``1h30m``, ``2d``.

    A time without an offset is local.

    :raises InvalidError: ``text`` is neither.
    """
    if found := _DURATION.fullmatch(text):
        days, hours, minutes, seconds = (float(number or 0) for number in found.groups())
        with suppress(OverflowError):
            return now - timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    with suppress(ValueError, OverflowError):
        return datetime.fromisoformat(text).astimezone(UTC)
    raise InvalidError(f"{text!r} is not a time; use 10m, 1h30m, or 2026-11-24T08:30:00Z")


class Log:
    """A log file, and its successors under the same name."""

    def __init__(self, path: Path, *, rotated: bool) -> None:
        self._path = path
        self._old = path.with_name(path.name + ".1") if rotated else None
        self._fd = self._open(self._old) if self._old else -1
        if self._fd < 0:
            self._fd = self._open(path)
        self._complete = False
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    @staticmethod
    def _open(path: Path) -> int:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return -1

    def seek_to_last(self, lines: int) -> None:
        """Seek to the last ``lines`` lines, reading backwards from the end."""
        if self._fd < 0:
            return
        position = size = os.fstat(self._fd).st_size
        wanted = lines
        if size and os.pread(self._fd, 1, size - 1) == b"\n":
            wanted += 1
        while lines and position > 0:
            start = max(0, position - _CHUNK)
            data = os.pread(self._fd, position - start, start)
            if (count := data.count(b"\n")) < wanted:
                wanted -= count
                position = start
                continue
            end = len(data)
            for _ in range(wanted):
                end = data.rindex(b"\n", 0, end)
            position = start + end + 1
            break
        os.lseek(self._fd, position, os.SEEK_SET)

    def chunks(self) -> Iterator[bytes]:
        """Give the bytes that were written since the last call."""
        while True:
            data = os.read(self._fd, _CHUNK) if self._fd >= 0 else b""
            if data:
                yield data
            elif not self._advance():
                return

    def lines(self) -> Iterator[bytes]:
        """Give complete lines that were written since the last call."""
        for data in self.chunks():
            *lines, self._rest = (self._rest + data).split(b"\n")
            yield from lines

    def _advance(self) -> bool:
        """Go to the next file if there is one; return whether reading can continue."""
        if self._fd < 0:
            self._fd = self._open(self._path)
            return self._fd >= 0
        ours = os.fstat(self._fd)
        if os.lseek(self._fd, 0, os.SEEK_CUR) > ours.st_size:
            os.lseek(self._fd, 0, os.SEEK_SET)  # truncated
            return True
        try:
            newest = self._path.stat()
        except FileNotFoundError:
            return False  # being renamed, or deleted
        if (newest.st_dev, newest.st_ino) == (ours.st_dev, ours.st_ino):
            return False
        if not self._complete:
            self._complete = True  # it has no writer any more: read its rest, then go on
            return True
        following = self._open(self._next(ours))
        if following < 0:
            return False
        os.close(self._fd)
        self._fd, self._complete = following, False
        return True

    def _next(self, ours: os.stat_result) -> Path:
        """Return the file that follows ours: ``FILE.1``, or the newest if ours was ``FILE.1``."""
        if self._old is not None:
            with suppress(FileNotFoundError):
                old = self._old.stat()
                if (old.st_dev, old.st_ino) != (ours.st_dev, ours.st_ino):
                    return self._old
        return self._path

    def has_writer(self) -> bool:
        """Return whether the logging program runs; other writers hold no lock."""
        if self._fd < 0:
            return False
        query = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer = fcntl.fcntl(self._fd, fcntl.F_GETLK, query)
        return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)


class _Printer:
    """Writes each entry to the stream that it came from, in the order of the log."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._begun: set[bytes] = set()  # streams whose last line is unfinished

    def show(self, entries: Iterable[Entry]) -> None:
        last = sys.stdout.buffer
        for entry in entries:
            out = sys.stdout.buffer if entry.stream == b"stdout" else sys.stderr.buffer
            if out is not last:
                # Both may go to one terminal or pipe, and each has a buffer of its own.
                last.flush()
                last = out
            if self._wanted.timestamps and entry.stream not in self._begun:
                out.write(entry.time + b" ")
            out.write(entry.content + (b"\n" if entry.ends else b""))
            (self._begun.discard if entry.ends else self._begun.add)(entry.stream)
        last.flush()


async def show_cri(path: Path, wanted: Wanted, is_over: Callable[[], bool] | None) -> None:
    """Print a CRI log; with ``is_over`` follow it until that returns true."""
    printer = _Printer(wanted)
    with Log(path, rotated=True) as log:
        printer.show(_last(_since(_entries(log), wanted.since), wanted.tail))

        def more() -> bool:
            entries = list(_since(_entries(log), wanted.since))
            printer.show(entries)
            return bool(entries)

        if is_over is not None:
            await _follow(log, more, is_over)


async def show_raw(path: Path, wanted: Wanted, is_over: Callable[[], bool] | None) -> None:
    """Print a file unchanged; with ``is_over`` follow it until that returns true.

    :raises InvalidError: ``wanted`` needs times.
    :raises NotFoundError: the file does not exist.
    """
    if wanted.since or wanted.timestamps:
        raise InvalidError(f"{path} has no times; --since and --timestamps need a log with times")
    if not path.is_file():
        raise NotFoundError(f"there is no log {path}")
    with Log(path, rotated=False) as log:
        if wanted.tail is not None:
            log.seek_to_last(wanted.tail)

        def more() -> bool:
            count = sum(sys.stdout.buffer.write(data) for data in log.chunks())
            sys.stdout.buffer.flush()
            return count > 0

        more()
        if is_over is not None:
            await _follow(log, more, is_over)


def is_cri(path: Path) -> bool:
    """Return whether the first line is of a CRI log; an empty file counts as one."""
    with open(path, "rb") as file:
        line = file.readline(_CHUNK)
    return not line or parse_entry(line.rstrip(b"\n")) is not None


async def _follow(log: Log, more: Callable[[], bool], is_over: Callable[[], bool]) -> None:
    last = trio.current_time()
    while True:
        over = is_over()  # before the read, so that no output in between is missed
        writer = log.has_writer()
        now = trio.current_time()
        if more():
            last = now
        elif over and (not writer or now >= last + _QUIET):
            return
        await trio.sleep(POLL)


def _entries(log: Log) -> Iterator[Entry]:
    for line in log.lines():
        # After a crash a line may be incomplete: print it as it is.
        yield parse_entry(line) or Entry(b"-", b"stdout", True, line)


def _since(entries: Iterator[Entry], since: datetime | None) -> Iterator[Entry]:
    for entry in entries:
        if since is None or entry.time == b"-" or entry.at >= since:
            yield entry


def _last(entries: Iterator[Entry], lines: int | None) -> Iterable[Entry]:
    """Keep the entries of the last ``lines`` lines."""
    if lines is None:
        return entries
    kept: deque[Entry] = deque()
    count = 0
    for entry in entries:
        if not kept or kept[-1].ends:
            count += 1
        kept.append(entry)
        while kept and count > lines:
            count -= kept.popleft().ends
    return kept
