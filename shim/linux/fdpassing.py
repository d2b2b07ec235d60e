"""Sends and receives fds over unix sockets.

``socket.send_fds`` and ``socket.recv_fds`` ignore their flags (CPython up to 3.13, Lib/socket.py):
a send could wait, and received fds would be inherited by programs that this process starts.

Source: unix(7) SCM_RIGHTS, recv(2) MSG_CMSG_CLOEXEC.
"""

from __future__ import annotations

import socket
from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_INT = array("i").itemsize


def send_fds(sock: socket.socket, data: bytes, fds: Sequence[int], flags: int = 0) -> None:
    """Send ``data`` as one message, with copies of ``fds``.

    :raises BlockingIOError: with MSG_DONTWAIT, or on a non-blocking socket: there is no room.
    """
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))], flags)


def receive_fds(sock: socket.socket, size: int, most: int) -> tuple[bytes, list[int], int]:
    """Return a message of at most ``size`` bytes, its fds, close-on-exec, and the flags.

    The kernel closes fds after the first ``most``; the flags then have MSG_CTRUNC.

    :raises BlockingIOError: on a non-blocking socket: there is none.
    """
    room = socket.CMSG_LEN(most * _INT)
    data, control, flags, _ = sock.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
    fds = array("i")
    for level, kind, part in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(part[: len(part) - len(part) % _INT])
    return data, list(fds), flags
