"""The user's own terminal: its size, and raw mode while a container uses it.

In raw mode every key goes to the container, including Ctrl-C.  The mode is
restored whenever the block ends, except after SIGKILL: then `reset` in that
terminal restores it.  Changes that the container made to the screen (colours,
cursor, the alternate screen) are not undone.
"""

from __future__ import annotations

import os
import signal
import termios
import tty
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from shim.errors import InvalidError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def raw_mode(fd: int) -> Iterator[None]:
    """Put ``fd`` into raw mode for the block; do nothing if it is not a terminal."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    tty.setraw(fd, termios.TCSANOW)
    try:
        yield
    finally:
        # TCSADRAIN would block on a terminal without a reader.  SIGTTOU is blocked
        # because it would stop us if the shell has put us into the background.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            # The terminal may be closed already.
            with suppress(termios.error):
                termios.tcsetattr(fd, termios.TCSANOW, before)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def check_input(*, stdin: bool, terminal: bool) -> None:
    """Refuse to forward our stdin to the terminal of a process unless stdin is a terminal.

    The end of input closes that terminal, so the process would get SIGHUP at once and lose
    the input.  Source: docker/cli cli/streams/in.go, CheckTty.

    :raises InvalidError: both are set, and our stdin is no terminal.
    """
    if stdin and terminal and not os.isatty(0):
        raise InvalidError(
            "the input device is not a TTY; for input from a pipe or a file the process must "
            "have no terminal"
        )


def size_of(fd: int) -> tuple[int, int] | None:
    """Return the width and height of the terminal in characters, or None without one."""
    try:
        width, height = os.get_terminal_size(fd)
    except OSError:
        return None
    return (width, height) if width and height else None


def own_size() -> tuple[int, int] | None:
    """Return the size of our own terminal, or None without one."""
    return size_of(0) or size_of(1)
