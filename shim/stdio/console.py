"""The socket over which a runtime hands us the master of a new terminal.

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
from shim.linux.fifos import Fd
from shim.linux.sockets import make_private_directory


class ConsoleSocket:
    """A listening socket in a directory of its own.  Close it when done."""

    def __init__(self) -> None:
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

    async def receive_master(self, timeout: float) -> Fd:
        """Return the master of the terminal, non-blocking.

        :raises TimedOutError: no runtime sent one within ``timeout`` seconds.
        :raises UnavailableError: one sent something else.
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
                f"the runtime sent no terminal in {timeout:g} s; does it know --console-socket?"
            ) from None
        except trio.ClosedResourceError:
            raise UnavailableError("closed before the runtime sent a terminal") from None

    def close(self) -> None:
        """Remove the socket and wake who waits on it; harmless when it was done before."""
        if self._listener.fileno() >= 0:
            trio.lowlevel.notify_closing(self._listener)
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)  # noqa: PTH108 - a plain string all along
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(self._directory)  # noqa: PTH106 - a plain string all along


async def _receive(peer: socket.socket) -> Fd:
    await wait_readable(peer.fileno())
    # recv_fds would leave room for more than one; what does not fit is closed for us.
    _, fds, _, _ = socket.recv_fds(peer, 4096, 1, socket.MSG_CMSG_CLOEXEC)
    received = [Fd(number) for number in fds]
    if len(received) == 1 and os.isatty(received[0].number):
        os.set_blocking(received[0].number, False)
        return received[0]
    for fd in received:
        fd.close()
    raise UnavailableError("the runtime sent no terminal over the console socket")


def set_size(master: Fd, width: int, height: int) -> None:
    """Tell a terminal how many columns and rows it has."""
    if max(width, height) > 0xFFFF:
        raise InvalidError(f"a terminal cannot have {width} columns and {height} rows")
    size = struct.pack("HHHH", height, width, 0, 0)
    fcntl.ioctl(master.number, termios.TIOCSWINSZ, size)
