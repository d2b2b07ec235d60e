"""The lines of the logs of containers: CRI logs and the json-file logs of Docker and nerdctl.

Text in, entries out; nothing here reads a file.

Source: kubernetes, "CRI logging" and its log format; moby daemon/logger/jsonfilelog.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from shim.errors import InvalidError

if TYPE_CHECKING:
    from collections.abc import Callable

_ENTRY = re.compile(
    rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)) "
    rb"(stdout|stderr) ([FP])(?::[^ ]*)? (.*)",
    re.DOTALL,
)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)")
_DURATION = re.compile(r"(?=.)(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a log, or the beginning of one if ``ends`` is false."""

    time: bytes  # RFC 3339, as it is in the log; - if the line is damaged
    stream: bytes
    ends: bool
    content: bytes

    @property
    def at(self) -> datetime:
        """The time, to the microsecond."""
        return datetime.fromisoformat(self.time.decode())


@dataclass(frozen=True, slots=True)
class Wanted:
    """The part of a log to print, and its form; ``tail`` counts lines, None is all.

    Lines from ``since`` to ``until``, both included, are printed.
    """

    since: datetime | None = None
    tail: int | None = None
    timestamps: bool = False
    until: datetime | None = None

    def includes(self, entry: Entry) -> bool:
        """Return whether the entry's time is wanted; a damaged line has no time and is."""
        if entry.time == b"-" or (self.since is None and self.until is None):
            return True
        at = entry.at
        return (self.since is None or at >= self.since) and (
            self.until is None or at <= self.until
        )

    def has_times(self) -> bool:
        """Return whether this needs a log whose lines have times."""
        return bool(self.since or self.until or self.timestamps)


def parse_entry(line: bytes) -> Entry | None:
    """Parse one line of a CRI log; return None if it is not one."""
    found = _ENTRY.fullmatch(line)
    if found is None or not _is_date(found[1].decode()):
        return None
    return Entry(found[1], found[2], found[3] == b"F", found[4])


def parse_json_entry(line: bytes) -> Entry | None:
    """Parse one line of a json-file log; return None if it is not one."""
    if not line.startswith(b"{"):
        return None
    try:
        fields = json.loads(line)
        text, stream, time = fields["log"], fields["stream"], fields["time"]
        whole = _TIME.fullmatch(time) and stream in ("stdout", "stderr") and _is_date(time)
        content = text.encode(errors="replace")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    if not whole:
        return None
    ends = content.endswith(b"\n")
    return Entry(time.encode(), stream.encode(), ends, content[:-1] if ends else content)


# The parsers of the formats with times, by the format's name.
FORMATS: dict[str, Callable[[bytes], Entry | None]] = {
    "cri": parse_entry,
    "json": parse_json_entry,
}


def _is_date(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False  # for example February 31
    return True


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
