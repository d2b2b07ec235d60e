"""What a command prints, in the format that was asked for.

Colours are for a terminal that has them, unless NO_COLOR is set.
Source: https://no-color.org.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from shimctl.cli import render

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterable, Sequence


def show(args: Namespace, value: object, text: Callable[[], str] | None = None) -> None:
    """Print ``value`` as JSON or YAML if asked to, and else ``text``, if there is one."""
    match args.output:
        case "json":
            print(render.as_json(value))
        case "yaml":
            print(render.as_yaml(value), end="")
        case _:
            if text is not None:
                print(text())


def show_table(
    args: Namespace,
    value: object,
    headers: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    wide: int = 0,
) -> None:
    """Print ``value`` like :func:`show`, or a table whose last ``wide`` columns are for wide."""
    show(args, value, lambda: table(args, headers, rows, wide=wide))


def table(
    args: Namespace, headers: Sequence[str], rows: Iterable[Sequence[object]], *, wide: int = 0
) -> str:
    """Make the table, coloured if stdout is for it."""
    columns = len(headers) - (0 if args.output == "wide" else wide)
    shown = [row[:columns] for row in rows]
    return render.table(headers[:columns], shown, colours=colours(sys.stdout.isatty()))


def colours(terminal: bool) -> bool:
    """Tell whether what goes to a ``terminal``, or to something else, is to have colours."""
    return terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
