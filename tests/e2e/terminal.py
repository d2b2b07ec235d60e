"""A user at a terminal: a program on a real pty, its screen, its window."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import subprocess
import termios
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


class Terminal:
    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.screen = ""
        self._master = master

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        """Change the window and notify the program, as a terminal emulator does."""
        set_size(self._master, rows, columns)
        self.process.send_signal(signal.SIGWINCH)

    def expect(self, text: str, timeout: float = 20) -> None:
        """Read until ``text`` is on the screen, and drop the text up to it."""
        deadline = time.monotonic() + timeout
        while text not in self.screen:
            assert time.monotonic() < deadline, f"no {text!r} on the screen: {self.screen!r}"
            assert self._read(0.1), f"the end before {text!r}: {self.screen!r}"
        self.screen = self.screen.split(text, 1)[1]

    def wait(self, timeout: float = 20) -> int:
        """Read to the end and return the program's exit code."""
        deadline = time.monotonic() + timeout
        while self._read(0.1) and self.process.poll() is None:
            assert time.monotonic() < deadline, f"it goes on: {self.screen!r}"
        return self.process.wait(timeout)

    def _read(self, timeout: float) -> bool:
        """Read the available bytes; return False once the other side is closed."""
        if not select.select([self._master], [], [], timeout)[0]:
            return True
        try:
            data = os.read(self._master, 65536)
        except OSError:  # EIO: no process has the terminal open any more
            return False
        # Two terminals in a row may each add their own carriage return.
        self.screen += data.decode(errors="replace").replace("\r", "")
        return bool(data)


def set_size(fd: int, rows: int, columns: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@contextmanager
def open_terminal(
    argv: Sequence[str | Path], rows: int = 24, columns: int = 80
) -> Iterator[Terminal]:
    """Run ``argv`` at a new terminal for the block, and kill it at the end."""
    master, slave = os.openpty()
    set_size(master, rows, columns)
    try:
        process = subprocess.Popen(
            argv, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
    finally:
        os.close(slave)
    try:
        yield Terminal(master, process)
    finally:
        process.kill()
        process.wait(10)
        os.close(master)


def check_interrupt(terminal: Terminal) -> None:
    """Check that Ctrl-C in a shell ends its program and not the shell; then leave the shell."""
    terminal.expect("# ")
    # Between two commands the shell itself would get the signal.
    terminal.type("sh -c 'echo go; exec sleep 1000'\n")
    terminal.expect("go\n")
    terminal.type("\x03")
    terminal.expect("# ")
    terminal.type("echo code $?; exit 0\n")
    terminal.expect("code 130")
    assert terminal.wait() == 0
