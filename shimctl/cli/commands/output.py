"""Print a command's result in the format that ``-o`` selects.

A table has colours if stdout is a terminal with colours and NO_COLOR is not set.
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
    """Print ``value`` as JSON or YAML if ``-o`` selects it; otherwise print ``text``, if given."""
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
    """Print ``value`` as :func:`show` does, or a table.

    The last ``wide`` columns are printed only with ``-o wide``.
    """
    show(args, value, lambda: table(args, headers, rows, wide=wide))


def table(
    args: Namespace, headers: Sequence[str], rows: Iterable[Sequence[object]], *, wide: int = 0
) -> str:
    """Return the table, with colours if stdout should have them."""
    columns = len(headers) - (0 if args.output == "wide" else wide)
    shown = [row[:columns] for row in rows]
    return render.table(headers[:columns], shown, colours=colours(sys.stdout.isatty()))


def colours(terminal: bool) -> bool:
    """Return whether output has colours; ``terminal`` is whether it goes to a terminal."""
    return terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
