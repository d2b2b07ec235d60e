"""What people and programs see: aligned tables, and JSON.

Text out of values; nothing here reads a clock, a file or a terminal.
"""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_ABSENT = "-"
_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Align ``rows`` under ``headers``, a line each; absent values are ``-``.

    Control characters are shown escaped: what a container or a peer named
    itself must not move the reader's cursor.
    """
    lines = [list(headers), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _cell(value: object) -> str:
    if value is None or value == "":
        return _ABSENT
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    return printable(str(value))


def printable(text: str) -> str:
    """Escape what is not printable, so that one line stays one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def size(count: int | None) -> str | None:
    """Show bytes as people read them: ``512B``, ``1.5MiB``."""
    if count is None:
        return None
    if count < 1024:
        return f"{count}B"
    number = float(count)
    for unit in _UNITS:
        number /= 1024
        if number < 1023.95 or unit == _UNITS[-1]:
            break
    return f"{number:.1f}{unit}"


def seconds(number: float) -> str:
    """Show a duration: ``0.012s``, ``75.2s``, ``2h05m``."""
    if number < 10:
        return f"{number:.3f}s"
    if number < 3600:
        return f"{number:.1f}s"
    minutes = int(number // 60)
    return f"{minutes // 60}h{minutes % 60:02d}m"


def as_json(value: object, *, indent: int | None = 2) -> str:
    """Show any of our values as JSON; ``indent=None`` gives one line.

    Times are RFC 3339, enumerations their names, tuples lists, absence null.
    """
    return json.dumps(_plain(value), indent=indent, ensure_ascii=False)


def _plain(value: object) -> Any:
    match value:
        case datetime():
            return value.isoformat().replace("+00:00", "Z")
        case Enum():
            return value.value
        case bytes():
            return value.decode(errors="replace")
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case _ if is_dataclass(value):
            return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
        case _:
            return value
