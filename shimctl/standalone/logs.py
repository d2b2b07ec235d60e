"""Print and follow the logs of containers: CRI logs, json-file logs and plain files.

Any file in another format is printed unchanged, without times.  A follower reads every
``POLL`` seconds and changes to the next file once the last is complete.  It stops when
``is_over`` returns true, all is read, and no process has the log open to write or none
has written for ``_QUIET`` seconds.

Source: fcntl(2), F_GETLK.
"""

from __future__ import annotations

import sys
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import trio

from shim.errors import InvalidError, NotFoundError
from shimctl.standalone.logentries import FORMATS, Entry, parse_entry, parse_json_entry
from shimctl.standalone.logfiles import CHUNK, Log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from shimctl.standalone.logentries import Wanted

POLL = 0.1  # s between two reads
RAW = "raw"  # the format of a file without times
# Seconds without output after the exit; then the log counts as complete.  The logging program
# has the last bytes in its pipe, and waits for a processor on a busy machine.
_QUIET = 2.0


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
                # Both may go to one terminal or pipe, and each has a separate buffer.
                last.flush()
                last = out
            if self._wanted.timestamps and entry.stream not in self._begun:
                out.write(entry.time + b" ")
            out.write(entry.content + (b"\n" if entry.ends else b""))
            (self._begun.discard if entry.ends else self._begun.add)(entry.stream)
        last.flush()


async def show(path: Path, form: str, wanted: Wanted, is_over: Callable[[], bool] | None) -> None:
    """Print a log; with ``is_over`` follow it until that returns true.

    ``form`` is its format: ``cri``, ``json`` or ``raw``.

    :raises InvalidError: ``wanted`` needs times, and the log has none.
    :raises NotFoundError: a raw file does not exist.
    """
    if form == RAW:
        await _show_raw(path, wanted, is_over)
        return
    printer = _Printer(wanted)
    until = wanted.until
    with Log(path, rotated=True) as log:

        def entries() -> Iterator[Entry]:
            parse = FORMATS[form]
            for line in log.lines():
                # After a crash a line may be incomplete: print it as it is.
                entry = parse(line) or Entry(b"-", b"stdout", True, line)
                if wanted.includes(entry):
                    yield entry

        def more() -> bool:
            found = list(entries())
            printer.show(found)
            return bool(found)

        def over() -> bool:
            assert is_over is not None
            return is_over() or (until is not None and datetime.now(UTC) > until)

        printer.show(_last(entries(), wanted.tail))
        if is_over is not None:
            await _follow(log, more, over)


async def _show_raw(path: Path, wanted: Wanted, is_over: Callable[[], bool] | None) -> None:
    if wanted.has_times():
        raise InvalidError(
            f"{path} has no times; --since, --until and --timestamps need a log with times"
        )
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


def format_of(path: Path) -> str:
    """Return the format of the first line; an empty file counts as a CRI log."""
    with open(path, "rb") as file:
        line = file.readline(CHUNK).rstrip(b"\n")
    if not line or parse_entry(line):
        return "cri"
    return "json" if parse_json_entry(line) else RAW


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
