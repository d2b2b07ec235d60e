"""A container's output, the unread part of it in its fifo, and the part in its log.

When containerd is killed, some bytes have left a fifo and are not in the log: they are lost
with it, and the shim cannot prevent that.  Only the content of the fifo at that moment
distinguishes them from bytes that the shim loses.
"""

from __future__ import annotations

import ctypes
import os
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shim.errors import NotFoundError
from shim.linux import fifos

if TYPE_CHECKING:
    from pathlib import Path

STREAMS = ("stdout", "stderr")
# Bytes that one stream can have in containerd's buffers: io.Copy's and its logger's.
IN_HAND = 40 << 10
_PADDING = "." * 80
_NUMBER = re.compile(r"(stdout|stderr) (\d+) \.{80}")
_tee = ctypes.CDLL(None, use_errno=True).tee


def line(stream: str, number: int) -> str:
    return f"{stream} {number} {_PADDING}"


def script(delay: float, lines: int, pause: float, code: int) -> str:
    """Return a shell script that writes to both streams and exits."""
    between = f"sleep {pause};" if pause else ""
    return (
        f"sleep {delay}; i=0; while [ $i -lt {lines} ]; do "
        f'echo "stdout $i {_PADDING}"; echo "stderr $i {_PADDING}" >&2; '
        f"i=$((i+1)); {between} done; exit {code}"
    )


def peek(path: Path) -> str:
    """Return the unread bytes of a fifo, and leave them there."""
    try:
        source = fifos.open_reader(str(path))
    except NotFoundError:
        return ""
    reader, writer = fifos.open_pipe()
    try:
        count = _tee(source.number, writer.number, fifos.PIPE_SIZE, os.SPLICE_F_NONBLOCK)
        writer.close()
        data = b""
        while len(data) < count:
            data += os.read(reader.number, count)
    finally:
        for fd in (source, reader, writer):
            fd.close()
    return data.decode()


def opens(path: Path, seconds: float = 0.5) -> bool:
    """Return whether an open(2) of a fifo to read returns, which waits for a writer."""
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            opening.result(seconds)
        except TimeoutError:
            fifos.open_writer(str(path)).close()  # so that the thread ends
            return False
        finally:
            os.close(opening.result())
    return True


@dataclass(frozen=True, slots=True)
class Look:
    """A stream when its manager was dead: the last line logged, and the first one unread.

    ``logged`` is -1 without a log.  ``unread`` is None where the fifo was empty.
    ``waiting`` is how many lines were unread, ``offered`` whether an open(2) for them
    returned.
    """

    logged: int
    unread: int | None
    waiting: int
    offered: bool = True


@dataclass
class Log:
    """A container's log in the CRI's format, and the looks at its streams."""

    path: Path
    lines: int  # that the container writes to each stream
    looks: dict[str, list[Look]] = field(default_factory=lambda: {s: [] for s in STREAMS})

    def look(self, pipes: Path) -> None:
        """Record the content of the log and, at ``pipes``, the unread bytes.  No manager may
        run.
        """
        for stream in STREAMS:
            fifo = next(pipes.glob(f"*/*-{stream}"), pipes)
            unread = peek(fifo) if fifo != pipes else ""
            numbers = _NUMBER.findall(unread)
            logged = self.numbers(stream)
            first = int(numbers[0][1]) if numbers else None
            last = logged[-1] if logged else -1
            offered = not unread or opens(fifo)
            self.looks[stream].append(Look(last, first, len(numbers), offered))

    def numbers(self, stream: str) -> list[int]:
        """Return the numbers of the whole lines of ``stream``, as they are in the log."""
        found = []
        with suppress(FileNotFoundError):
            for entry in self.path.read_text().splitlines():
                _time, name, _tag, text = [*entry.split(" ", 3), "", "", ""][:4]
                match = _NUMBER.fullmatch(text)
                if name == stream and match is not None and match[1] == stream:
                    found.append(int(match[2]))
        return found

    def missing(self, stream: str) -> tuple[list[int], list[int]]:
        """Return the lines that are missing: those that a killed manager had taken, and all else.

        :raises AssertionError: the lines are not in order, or one comes twice.
        """
        logged = self.numbers(stream)
        assert logged == sorted(set(logged)), f"{self.path}: {stream} is out of order"
        there = set(logged)
        missing = [number for number in range(self.lines) if number not in there]
        taken = [number for number in missing if self._taken(stream, number, logged)]
        return taken, [number for number in missing if number not in set(taken)]

    def offered(self, stream: str) -> bool:
        """Return whether the unread bytes of a check were there for the next manager to read."""
        return all(look.offered for look in self.looks[stream])

    def _taken(self, stream: str, number: int, logged: list[int]) -> bool:
        after = next((each for each in logged if each > number), self.lines)
        waited = -2  # the log's content when this line was unread
        for look in self.looks[stream]:
            if look.unread is not None and look.unread <= number < look.unread + look.waiting:
                waited = look.logged
            elif look.logged < number and look.logged != waited:
                # A line that was unread in part counts as taken: its beginning was.
                size = (after - look.logged - 1) * len(line(stream, number))
                if number < look.unread if look.unread is not None else size <= IN_HAND:
                    return True
        return False
