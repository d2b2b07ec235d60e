"""A terminal that shows one page, again and again, and takes single keys.

The page is on the alternate screen, so that what was there comes back on every
way out of the block.  Source: console_codes(4), xterm's private mode 1049.
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
    """What :func:`open_screen` gives."""

    def show(self, page: str) -> None:
        """Show the lines of ``page`` that fit; a line may have colours, and may be cut."""
        width, height = os.get_terminal_size(sys.stdout.fileno())
        lines = [cut(line, width) + _TO_END_OF_LINE for line in page.split("\n")[:height]]
        sys.stdout.write(_HOME + "\r\n".join(lines) + _TO_END)
        sys.stdout.flush()

    async def wait_key(self) -> str:
        """Wait for a key; for ever where there is no keyboard."""
        fd = sys.stdin.fileno()
        if not os.isatty(fd):
            await trio.sleep_forever()
        await trio.lowlevel.wait_readable(fd)
        return os.read(fd, 1).decode(errors="replace")


def cut(line: str, width: int) -> str:
    """Shorten ``line`` to ``width`` characters, not counting its colours, which end with it."""
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
    """Take over the terminal on stdout, and the keyboard on stdin, for the block."""
    with _keys(sys.stdin.fileno()):
        sys.stdout.write(_ENTER)
        try:
            yield Screen()
        finally:
            sys.stdout.write(_LEAVE)
            sys.stdout.flush()


@contextmanager
def _keys(fd: int) -> Iterator[None]:
    """Have each key at once and unechoed.  Ctrl-C still interrupts; Ctrl-Z does nothing."""
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
