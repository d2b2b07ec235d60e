"""Show the progress of unpacking an image as one line that is overwritten.

A pure function makes the line.  The writer prints it, if stderr is a terminal.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shim.text import printable
from shimctl.cli import render

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shimctl.images.step import Step

_EVERY = 0.1  # s between two lines
_CLEAR = "\r\x1b[K"
_NARROWEST = 10  # the fewest columns of a useful bar


def line(step: Step, width: int) -> str:
    """Show ``step`` in less than ``width`` columns: ``unpacking [####    ]  50%  4.0 MiB``."""
    room = max(width - 1, 0)
    if not step.total:
        text = f"{step.what}  {render.size(step.done)}" if step.done else step.what
        return text[:room]
    part = min(max(step.done / step.total, 0.0), 1.0)
    done, total = render.size(min(step.done, step.total)), render.size(step.total)
    after = f" {int(part * 100):3d}%  {done} of {total}"
    columns = room - len(step.what) - len(after) - 3
    if columns < _NARROWEST:
        return f"{step.what}{after}"[:room]
    filled = int(part * columns)
    return f"{step.what} [{'#' * filled}{' ' * (columns - filled)}]{after}"


@contextmanager
def open_progress() -> Iterator[Callable[[Step], None] | None]:
    """Yield a function that shows a step on stderr, or None if stderr is not a terminal."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield None
        return
    shown = _Writer()
    try:
        yield shown.show
    finally:
        shown.clear()


class _Writer:
    def __init__(self) -> None:
        self._what = ""
        self._next = 0.0

    def show(self, step: Step) -> None:
        now = time.monotonic()
        if step.what == self._what and now < self._next:
            return
        self._what, self._next = step.what, now + _EVERY
        width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
        self._write(_CLEAR + printable(line(step, width)))

    def clear(self) -> None:
        if self._what:
            self._write(_CLEAR)

    @staticmethod
    def _write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()
