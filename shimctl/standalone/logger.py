"""The logging program of detached containers: pipes in, a log file out, for any shim v2.

A shim starts it for a ``binary://`` address, with a container's stdout as fd 3 and
stderr as fd 4, and takes the end of fd 5 as "ready".  Each line becomes

    2016-10-06T00:17:09.669794202Z stdout F message

with P instead of F where the newline has not come: the line was too long, or
stayed unfinished for a moment, or was the last.  What is written after a P
continues it.  At its limit the file is renamed to ``FILE.1`` and begun again.

It must not lose a byte nor make the container wait.  It ends when both pipes
have; after SIGTERM, when there is nothing left in them.  What a full disk
refuses is counted, and the count logged as soon as there is room.

Where there are fifos beside the file, ``stdout`` and ``stderr``, who reads one
gets everything from then on, as it came; nobody is waited for.

It runs for as long as the container, so only what is tiny is imported; not even
this package is.  For the same reason ``signal`` is not: that is 0.8 MiB.

Source: kubernetes, "CRI logging" and its log format; containerd's binary logging.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # typeshed knows only signal
import fcntl
import os
import select
import time

STDOUT, STDERR, READY = 3, 4, 5
LIMIT = 10 << 20  # bytes of a file until it is renamed
LONGEST = 16 * 1024  # bytes of one entry, as CRI has it
UNFINISHED = 200  # ms after which a line without its end is logged as far as it is
_CHUNK = 64 * 1024  # bytes of one read
_ROOM = 1 << 20  # bytes that a pipe holds at the most


class LogFile:
    """The file: whole entries only, renamed at its limit, truncated where the disk is full."""

    def __init__(self, path: str, limit: int = LIMIT) -> None:
        self.lost = 0  # bytes of output since the last entry that was written
        self._path = path
        self._limit = limit
        self._fd = -1
        self._size = 0
        self._why = ""

    def write(self, entries: bytes, content: int) -> None:
        """Append ``entries``, which hold ``content`` bytes of output; failing is counted."""
        if not entries and not self.lost:
            return
        try:
            if self.lost:
                lost = f"shimctl: {self.lost} bytes of output were lost: {self._why}"
                note = _prefix(b"stderr", b"F") + lost.encode(errors="replace") + b"\n"
                entries = note + entries
            self._append(entries)
        except OSError as exc:
            self.lost += content
            self._why = exc.strerror or "error"
        else:
            self.lost = 0

    def _append(self, entries: bytes) -> None:
        if self._fd >= 0 and self._size and self._size + len(entries) > self._limit:
            self.close()
            os.replace(self._path, self._path + ".1")  # noqa: PTH105 - pathlib costs 1 MiB
        if self._fd < 0:
            self._open()
        rest = memoryview(entries)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError:
            os.ftruncate(self._fd, self._size)  # not half an entry
            raise
        self._size += len(entries)

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self._path, flags, 0o600)
        try:  # noqa: SIM105 - contextlib is more than all of this
            # Whoever follows the log sees by this that more may come.
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pass  # no reason to lose output
        self._size = os.fstat(self._fd).st_size

    def close(self) -> None:
        """Close the file; the next entry opens it again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Copy:
    """Raw output for whoever reads the fifo at ``path``, if anybody does."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._skipped = 0

    def write(self, data: bytes) -> None:
        """Give ``data`` to the reader; what does not fit is skipped, and that is said."""
        left = len(data)
        try:
            if self._fd < 0:
                self._open()
            if self._skipped:
                note = f"\r\nshimctl: {self._skipped} bytes skipped, read faster\r\n"
                os.write(self._fd, note.encode())
                self._skipped = 0
            while left:
                left -= os.write(self._fd, data[-left:])
        except BlockingIOError:
            self._skipped += left
        except OSError:
            self.close()  # nobody reads, any more or yet

    def _open(self) -> None:
        self._skipped = 0
        self._fd = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, _ROOM)
        except OSError:
            return  # then it is as large as the host allows

    def close(self) -> None:
        """Let the reader see the end."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Stream:
    """One of the container's pipes, cut into entries."""

    def __init__(self, fd: int, name: bytes, log: LogFile, copy: Copy) -> None:
        self.fd = fd
        self.ended = False
        self.unfinished = b""  # the beginning of a line
        self._name = name
        self._log = log
        self._copy = copy
        os.set_blocking(fd, False)

    def read(self) -> int:
        """Take what is there; return how many bytes that were."""
        try:
            data = os.read(self.fd, _CHUNK)
        except BlockingIOError:
            return 0
        if data:
            self._copy.write(data)
            *lines, self.unfinished = (self.unfinished + data).split(b"\n")
            self._write(lines)
            if len(self.unfinished) >= LONGEST:
                self.flush()
        else:
            self.flush()
            self._copy.close()
            self.ended = True
        return len(data)

    def flush(self) -> None:
        """Log the line that has no end yet."""
        rest, self.unfinished = self.unfinished, b""
        prefix = _prefix(self._name, b"P")
        for start in range(0, len(rest), LONGEST):
            piece = rest[start : start + LONGEST]
            self._log.write(prefix + piece + b"\n", len(piece))

    def _write(self, lines: list[bytes]) -> None:
        prefix = _prefix(self._name, b"F")
        short: list[bytes] = []
        size = 0
        for line in lines:
            # In pieces, for no file is to grow beyond its limit by what one read gave.
            size += len(prefix) + len(line) + 1
            if size > LONGEST:
                self._write_short(prefix, short)
                short = []
                size = len(prefix) + len(line) + 1
            if len(line) <= LONGEST:
                short.append(line)
                continue
            start = (len(line) - 1) // LONGEST * LONGEST
            self.unfinished, kept = line[:start], self.unfinished
            self.flush()
            self.unfinished = kept
            self._write_short(prefix, [line[start:]])
            size = 0
        self._write_short(prefix, short)

    def _write_short(self, prefix: bytes, lines: list[bytes]) -> None:
        if lines:
            entries = prefix + (b"\n" + prefix).join(lines) + b"\n"
            self._log.write(entries, len(entries) - len(lines) * len(prefix))


def _prefix(stream: bytes, tag: bytes) -> bytes:
    seconds, rest = divmod(time.time_ns(), 1_000_000_000)
    date = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode()
    return b"%s.%09dZ %s %s " % (date, rest, stream, tag)


def main(path: str, limit: int = LIMIT) -> None:
    """Log into ``path`` until the container's pipes end, or SIGTERM finds them empty."""
    woken, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    _signal.set_wakeup_fd(wake)
    _signal.signal(_signal.SIGTERM, lambda *_: None)
    log = LogFile(path, limit)
    directory = path.rpartition("/")[0]
    streams = [
        Stream(STDOUT, b"stdout", log, Copy(f"{directory}/stdout")),
        Stream(STDERR, b"stderr", log, Copy(f"{directory}/stderr")),
    ]
    poll = select.poll()
    for fd in (woken, STDOUT, STDERR):
        poll.register(fd, select.POLLIN)
    try:  # noqa: SIM105 - contextlib is more than all of this
        os.write(READY, b"\0")
    except OSError:
        pass  # who started us is gone; the container may not be
    os.close(READY)
    while streams:
        unfinished = any(stream.unfinished for stream in streams)
        ready = [fd for fd, _ in poll.poll(UNFINISHED if unfinished else None)]
        for stream in list(streams):
            if not ready:
                stream.flush()
            elif stream.fd in ready:
                stream.read()
            if stream.ended:
                poll.unregister(stream.fd)
                streams.remove(stream)
        if woken in ready:
            break
    for stream in streams:
        left = _ROOM  # as much as there can be now: others may write for ever
        while left > 0 and (count := stream.read()):
            left -= count
        stream.flush()
    log.write(b"", 0)
    log.close()
