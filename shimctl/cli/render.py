"""Format values as aligned tables, JSON and YAML.

All functions are pure: they read no clock, no file and no terminal.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Any

from shim.jsontext import Verbatim
from shim.text import printable
from shimctl.cli.fitting import cut, fitted
from shimctl.units import seconds as seconds
from shimctl.units import size as size

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

_ABSENT = "-"


class Colour(StrEnum):
    """The escape sequences that set a terminal's text style.  Source: ECMA-48, SGR."""

    RED = "\x1b[31m"
    GREEN = "\x1b[32m"
    YELLOW = "\x1b[33m"
    CYAN = "\x1b[36m"
    FAINT = "\x1b[2m"
    BOLD = "\x1b[1m"


_PLAIN = "\x1b[0m"

# The colour of a status, by its first word.
_STATUSES = {
    "running": Colour.GREEN,
    "up": Colour.GREEN,
    "created": Colour.CYAN,
    "paused": Colour.YELLOW,
    "pausing": Colour.YELLOW,
    "silent": Colour.YELLOW,
    "stopped": Colour.FAINT,
    "exited": Colour.FAINT,
    "dead": Colour.RED,
    "not": Colour.RED,
}


@dataclass(frozen=True, slots=True)
class Coloured:
    """The text of a table's cell, and its colour for a terminal with colours."""

    text: str
    colour: Colour | None


def status(text: str) -> Coloured:
    """Return a status with its colour; an unknown status has none."""
    words = text.replace(",", " ").split()
    return Coloured(text, _STATUSES.get(words[0]) if words else None)


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    colours: bool = False,
    room: int = 0,
    elastic: Collection[int] = (),
) -> str:
    """Align ``rows`` under ``headers``, one line a row; an absent value is ``-``.

    The columns with an index in ``elastic`` are cut so that a line has at most ``room``
    characters, if that is possible; zero is no limit.

    Control characters are escaped, so that a name chosen by a container or a peer cannot
    control the reader's terminal.
    """
    grid = [[Coloured(name, Colour.BOLD) for name in headers]]
    grid += [[_cell(value) for value in row] for row in rows]
    widths = [max(len(line[column].text) for line in grid) for column in range(len(headers))]
    if room:
        widths = fitted(widths, room, elastic)
        grid = [
            [
                Coloured(cut(cell.text, width), cell.colour) if at in elastic else cell
                for at, (cell, width) in enumerate(zip(line, widths, strict=True))
            ]
            for line in grid
        ]
    return "\n".join(_line(line, widths, colours) for line in grid)


def _line(cells: Sequence[Coloured], widths: Sequence[int], colours: bool) -> str:
    *others, last = zip(cells, widths, strict=True)
    padded = [Coloured(cell.text.ljust(width), cell.colour) for cell, width in others]
    return "  ".join(_paint(cell, colours) for cell in (*padded, last[0])).rstrip()


def _paint(cell: Coloured, colours: bool) -> str:
    return f"{cell.colour}{cell.text}{_PLAIN}" if colours and cell.colour else cell.text


def _cell(value: object) -> Coloured:
    if isinstance(value, Coloured):
        return Coloured(_text(value.text), value.colour)
    return Coloured(_text(value), None)


def _text(value: object) -> str:
    if value is None or value == "":
        return _ABSENT
    if isinstance(value, datetime):
        return str(time(value))
    return printable(str(value))


def time(at: datetime | None, *, precise: bool = False) -> str | None:
    """Format a time in RFC 3339, in UTC, to the second, or to the millisecond if ``precise``."""
    if at is None:
        return None
    utc = at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    return utc.isoformat(timespec="milliseconds" if precise else "seconds").replace("+00:00", "Z")


def as_json(value: object, *, indent: int | None = 2) -> str:
    """Format a value of the library as JSON; ``indent=None`` gives one line.

    Times become RFC 3339, enumerations their values, tuples lists, None becomes null.
    """
    return _escaped(json.dumps(plain(value), indent=indent, ensure_ascii=False), _json_escape)


def as_line(value: object) -> str:
    """Format a value for a line of text: a text as it is, anything else as JSON in one line."""
    return value if isinstance(value, str) else as_json(value, indent=None)


def as_yaml(value: object) -> str:
    """Format a value of the library as YAML, with the names and values of :func:`as_json`."""
    import yaml  # late: only this needs it, and it loads as slowly as a probe takes

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        # Only double-quoted YAML strings can contain escapes.
        style = '"' if _unprintable(value) else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style)

    Dumper.add_representer(str, text)
    shown = yaml.dump(plain(value), Dumper=Dumper, sort_keys=False, allow_unicode=True)
    return _escaped(str(shown), _yaml_escape)


def _unprintable(text: str) -> set[str]:
    """Return the characters in ``text`` that may control a terminal, except newline."""
    return set() if text.isprintable() else {c for c in text if not c.isprintable()} - {"\n"}


def _escaped(text: str, escape: Callable[[str], str]) -> str:
    return text.translate({ord(c): escape(c) for c in _unprintable(text)})


def _json_escape(char: str) -> str:
    return json.dumps(char)[1:-1]


def _yaml_escape(char: str) -> str:
    return f"\\U{ord(char):08x}"


def plain(value: object) -> Any:
    match value:
        case datetime():
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case Enum():
            return value.value
        case Verbatim():
            return str(value)
        case bytes():
            return value.decode(errors="replace")
        case dict():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case _ if is_dataclass(value):
            return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
        case _:
            return value
