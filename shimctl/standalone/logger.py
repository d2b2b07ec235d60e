"""The logging program of detached containers: it copies pipes to a log file, under any shim v2.

A shim starts it for a ``binary://`` address, with a container's stdout as fd 3 and
stderr as fd 4, and treats the end of fd 5 as "ready".  Each line becomes

    2016-10-06T00:17:09.669794202Z stdout F message

with P instead of F where the newline is missing: the line was too long, stayed
unfinished for ``UNFINISHED`` ms, or was the last one.  The next entry of the
stream continues it.  At its limit the file is renamed to ``FILE.1`` and a new
one begins.

The program must neither lose a byte nor delay the container.  It exits when both
pipes have ended, or after SIGTERM once they are empty.  Bytes that a full disk
refuses are counted, and the count is logged as soon as the disk has room.

If fifos named ``stdout`` and ``stderr`` lie beside the file, a reader of one gets
all output from then on, unchanged.  The program never waits for a reader.

It runs as long as the container, so it imports as little as possible: not even
this package, and not ``signal``, which takes 0.8 MiB.

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
UNFINISHED = 200  # ms after which the beginning of a line is logged
_CHUNK = 64 * 1024  # bytes of one read
_ROOM = 1 << 20  # the largest size of a pipe, in bytes


class LogFile:
    """The log file: it holds whole entries only and is renamed at its limit."""

    def __init__(self, path: str, limit: int = LIMIT) -> None:
        self.lost = 0  # bytes of output that could not be written since the last entry
        self._path = path
        self._limit = limit
        self._fd = -1
        self._size = 0
        self._why = ""

    def write(self, entries: bytes, content: int) -> None:
        """Append ``entries`` with ``content`` bytes of output; on failure count these bytes."""
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
        try:  # noqa: SIM105 - contextlib is larger than this module
            # A reader that follows the log sees by the lock that more may come.
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pass  # continue without the lock
        self._size = os.fstat(self._fd).st_size

    def close(self) -> None:
        """Close the file; the next entry opens it again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Copy:
    """Copies raw output to the reader of the fifo at ``path``, if there is one."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._skipped = 0

    def write(self, data: bytes) -> None:
        """Write ``data`` to the reader; skip the bytes that do not fit, and write their number."""
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
            self.close()  # the fifo has no reader

    def _open(self) -> None:
        self._skipped = 0
        self._fd = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, _ROOM)
        except OSError:
            return  # the fifo keeps its default size

    def close(self) -> None:
        """Close the fifo; the reader sees its end."""
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
        """Read once without waiting; return the number of bytes."""
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
        """Log the unfinished line."""
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
            # Write in pieces, so that one read cannot make the file much larger than its limit.
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
    """Log into ``path`` until the pipes end, or until they are empty after SIGTERM."""
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
    try:  # noqa: SIM105 - contextlib is larger than this module
        os.write(READY, b"\0")
    except OSError:
        pass  # the shim has ended; the container may still run
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
        left = _ROOM  # the most that the pipe can hold now; other processes may write on
        while left > 0 and (count := stream.read()):
            left -= count
        stream.flush()
    log.write(b"", 0)
    log.close()
