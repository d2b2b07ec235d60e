"""The user's own terminal: its size, and raw mode while a container has it.

In raw mode every key goes to the container, Ctrl-C too.  The mode is restored
on every way out of the block; a terminal left raw is useless.  Only SIGKILL
leaves no way out: then `reset` in that terminal helps.  What the container did
to the screen (colours, cursor, the alternate screen) is not ours to undo.
"""

from __future__ import annotations

import os
import signal
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
        # Not TCSADRAIN: a terminal that nobody reads would hold us for ever.  And
        # in the background, where our shell may have put us, it would stop us.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            # The terminal may have been closed under us; then there is nothing to restore.
            with suppress(termios.error):
                termios.tcsetattr(fd, termios.TCSANOW, before)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def size_of(fd: int) -> tuple[int, int] | None:
    """Return the width and height of the terminal in characters, None if ``fd`` is none."""
    try:
        width, height = os.get_terminal_size(fd)
    except OSError:
        return None
    return (width, height) if width and height else None


def own_size() -> tuple[int, int] | None:
    """Return the size of the terminal that we are in, None if we are in none."""
    return size_of(0) or size_of(1)
