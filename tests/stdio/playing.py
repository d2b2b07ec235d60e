"""The process of a terminal, played by a test."""

from __future__ import annotations

import os
import pty
import socket
import tty
from typing import TYPE_CHECKING

from shim.linux.fifos import Fd

if TYPE_CHECKING:
    from shim.stdio.streams import Stdio


def send_terminal(stdio: Stdio) -> Fd:
    """Send a terminal as a runtime does; return the process's end of it, in raw mode."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    assert stdio.console_socket is not None
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(stdio.console_socket)
        socket.send_fds(sock, [b"/dev/pts/0"], [master])
    os.close(master)
    return Fd(slave)


def write(process: Fd, data: bytes) -> None:
    assert os.write(process.number, data) == len(data)
