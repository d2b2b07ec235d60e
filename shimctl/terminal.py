"""The user's own terminal: its size, and raw mode while a container has it.

In raw mode every key goes to the container, Ctrl-C too.  The mode is restored
on every way out of the block; a terminal left raw is useless.
"""

from __future__ import annotations

import os
import termios
import tty
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def raw_mode(fd: int) -> Iterator[None]:
    """Put the terminal ``fd`` into raw mode for the block; nothing if it is none."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    tty.setraw(fd, termios.TCSANOW)
    try:
        yield
    finally:
        # The terminal may have been closed under us; then there is nothing to restore.
        with suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


def size_of(fd: int) -> tuple[int, int] | None:
    """Return the width and height of the terminal in characters, None if ``fd`` is none."""
    try:
        width, height = os.get_terminal_size(fd)
    except OSError:
        return None
    return (width, height) if width and height else None
