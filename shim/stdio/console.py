"""The socket over which a runtime sends the daemon the master of a new terminal.

Source: opencontainers/runc, docs/terminals.md and libcontainer/utils/cmsg.go:
the runtime connects, sends one fd by SCM_RIGHTS beside the terminal's name, and closes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import termios

import trio
from trio.lowlevel import wait_readable

from shim.errors import InvalidError, TimedOutError, UnavailableError
from shim.linux.fdpassing import receive_fds
from shim.linux.fifos import Fd
from shim.linux.modes import make_private_directory

# The role of the listener in the names of kept fds.
CONSOLE = "console"


class ConsoleSocket:
    """A listening socket in a private directory.  The caller closes it."""

    def __init__(self, inherited: int = -1, path: str = "") -> None:
        """Make one, or take over the listener ``inherited``, which is bound to ``path``."""
        if inherited >= 0:
            self.path, self._directory = path, path.rpartition("/")[0]
            self._listener = socket.socket(fileno=inherited)
            return
        self._directory = make_private_directory("console-")
        self.path = f"{self._directory}/s"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.setblocking(False)
            self._listener.bind(self.path)
            self._listener.listen(1)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Return the fd of the listener; -1 once it is closed."""
        return self._listener.fileno()

    async def receive_master(self, timeout: float) -> Fd:
        """Return the master of the terminal, non-blocking.

        :raises TimedOutError: no runtime sent a terminal within ``timeout`` seconds.
        :raises UnavailableError: the runtime sent something else, or the socket was closed.
        """
        try:
            with trio.fail_after(timeout):
                while True:
                    await wait_readable(self._listener.fileno())
                    try:
                        peer, _ = self._listener.accept()
                    except (BlockingIOError, ConnectionAbortedError):
                        continue
                    with peer:
                        peer.setblocking(False)
                        return await _receive(peer)
        except trio.TooSlowError:
            raise TimedOutError(
                f"the runtime sent no terminal within {timeout:g} s; "
                "check that it supports --console-socket"
            ) from None
        except trio.ClosedResourceError:
            raise UnavailableError(
                "the console socket was closed before the runtime sent a terminal"
            ) from None

    def close(self) -> None:
        """Remove the socket and wake its waiters; a second call does nothing."""
        if self._listener.fileno() >= 0:
            trio.lowlevel.notify_closing(self._listener)
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)  # noqa: PTH108 - a plain string all along
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(self._directory)  # noqa: PTH106 - a plain string all along


def close_inherited(listener: int) -> None:
    """Close the listener of a :class:`ConsoleSocket` of another process, and remove its path."""
    with socket.socket(fileno=listener) as sock:
        path = sock.getsockname()
        ConsoleSocket(sock.detach(), path).close()


async def _receive(peer: socket.socket) -> Fd:
    await wait_readable(peer.fileno())
    # The buffer holds one fd.  The kernel closes any others that were sent.
    _, fds, _ = receive_fds(peer, 4096, 1)
    received = [Fd(number) for number in fds]
    if len(received) == 1 and os.isatty(received[0].number):
        os.set_blocking(received[0].number, False)
        return received[0]
    for fd in received:
        fd.close()
    raise UnavailableError("the runtime sent no terminal over the console socket")


def winsize(width: int, height: int) -> bytes:
    """Return the kernel's form of a terminal's size, in columns and rows.

    :raises InvalidError: a number is above 65535.
    """
    if max(width, height) > 0xFFFF:
        raise InvalidError(
            f"cannot resize the terminal to {width} columns and {height} rows: "
            "each must be at most 65535"
        )
    return struct.pack("HHHH", height, width, 0, 0)


def set_size(master: Fd, size: bytes) -> None:
    """Set the size of a terminal to the result of :func:`winsize`.

    :raises OSError: the ioctl failed.
    """
    fcntl.ioctl(master.number, termios.TIOCSWINSZ, size)
