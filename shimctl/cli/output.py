"""Print a command's result in the format that ``-o`` selects.

A table has colours if stdout is a terminal with colours and NO_COLOR is not set.
Source: https://no-color.org.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shim.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

FORMATS = ("table", "wide", "json", "yaml")


@dataclass(frozen=True, slots=True)
class Out:
    """The format of the output, one of ``FORMATS``."""

    format: str = "table"

    @property
    def wide(self) -> bool:
        """Whether all columns are wanted."""
        return self.format == "wide"

    @property
    def is_table(self) -> bool:
        """Whether the output is for people: neither JSON nor YAML."""
        return self.format in ("table", "wide")

    def show(self, value: object, text: Callable[[], str] | None = None) -> None:
        """Print ``value`` as JSON or YAML if that is wanted; otherwise ``text``, if given."""
        from shimctl.cli import render

        match self.format:
            case "json":
                print(render.as_json(value))
            case "yaml":
                print(render.as_yaml(value), end="")
            case _:
                if text is not None:
                    print(text())

    def stream(self, value: object, text: Callable[[], str]) -> None:
        """Print one of many values immediately: a line of JSON, a YAML document, or ``text``."""
        from shimctl.cli import render

        match self.format:
            case "json":
                print(render.as_json(value, indent=None), flush=True)
            case "yaml":
                print(f"---\n{render.as_yaml(value)}", end="", flush=True)
            case _:
                print(text(), flush=True)

    def show_table(
        self,
        value: object,
        headers: Sequence[str],
        rows: Iterable[Sequence[object]],
        *,
        wide: int = 0,
        elastic: Collection[int] = (),
    ) -> None:
        """Print ``value`` as :meth:`show` does, or a table.

        The last ``wide`` columns are printed only with ``-o wide``.  ``elastic`` are the
        indexes of the columns that are cut to fit the table into a terminal.
        """
        self.show(value, lambda: self.table(headers, rows, wide=wide, elastic=elastic))

    def table(
        self,
        headers: Sequence[str],
        rows: Iterable[Sequence[object]],
        *,
        wide: int = 0,
        elastic: Collection[int] = (),
    ) -> str:
        """Return the table, with colours if stdout should have them."""
        from shimctl.cli import render

        columns = len(headers) - (0 if self.wide else wide)
        shown = [row[:columns] for row in rows]
        terminal = sys.stdout.isatty()
        room = os.get_terminal_size(sys.stdout.fileno()).columns if terminal else 0
        return render.table(
            headers[:columns],
            shown,
            colours=colours(terminal),
            room=0 if self.wide else room,
            elastic=elastic,
        )

    def lines(self, lines: Iterable[str]) -> None:
        """Print lines, or a list of them as JSON or YAML."""
        found = list(lines)
        self.show(found, (lambda: "\n".join(map(printable, found))) if found else None)

    def text(self, text: str) -> None:
        """Print a text that a template made; control characters are escaped."""
        for line in text.split("\n")[:-1]:
            print(printable(line))


def colours(terminal: bool) -> bool:
    """Return whether output has colours; ``terminal`` is whether it goes to a terminal."""
    return terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
