"""Show a page that is updated on a terminal, and read single keys.

The page is on the alternate screen.  Every exit from the block restores the previous
contents.  Source: console_codes(4), xterm's private mode 1049.
"""

from __future__ import annotations

import os
import sys
import termios
import tty
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

_ENTER = "\x1b[?1049h\x1b[?25l"  # the alternate screen, no cursor
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME, _TO_END_OF_LINE, _TO_END = "\x1b[H", "\x1b[K", "\x1b[J"


class Screen:
    """A page on the terminal and its keys; made by :func:`open_screen`."""

    def show(self, page: str) -> None:
        """Show ``page``, cut to the terminal's size; its lines may contain colours."""
        width, height = os.get_terminal_size(sys.stdout.fileno())
        lines = [cut(line, width) + _TO_END_OF_LINE for line in page.split("\n")[:height]]
        sys.stdout.write(_HOME + "\r\n".join(lines) + _TO_END)
        sys.stdout.flush()

    async def wait_key(self) -> str:
        """Wait for a key and return it; without a keyboard, wait until cancelled."""
        fd = sys.stdin.fileno()
        if not os.isatty(fd):
            await trio.sleep_forever()
        await trio.lowlevel.wait_readable(fd)
        return os.read(fd, 1).decode(errors="replace")


def cut(line: str, width: int) -> str:
    """Cut ``line`` to ``width`` characters, colour codes not counted; reset colours at its end."""
    shown, at, coloured = 0, 0, False
    while at < len(line):
        if line[at] == "\x1b":
            end = line.find("m", at)
            at = len(line) if end < 0 else end + 1
            coloured = True
            continue
        if shown == width:
            return line[:at] + ("\x1b[0m" if coloured else "")
        shown += 1
        at += 1
    return line


@contextmanager
def open_screen() -> Iterator[Screen]:
    """Use the terminal on stdout for pages, and that on stdin for keys, in the block."""
    with _keys(sys.stdin.fileno()):
        sys.stdout.write(_ENTER)
        try:
            yield Screen()
        finally:
            sys.stdout.write(_LEAVE)
            sys.stdout.flush()


@contextmanager
def _keys(fd: int) -> Iterator[None]:
    """Read each key immediately and without echo.  Ctrl-C interrupts; Ctrl-Z has no effect."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd, termios.TCSADRAIN)
    changed = termios.tcgetattr(fd)
    changed[6][termios.VSUSP] = b"\0"  # stopped, we would leave the terminal like this
    termios.tcsetattr(fd, termios.TCSADRAIN, changed)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
