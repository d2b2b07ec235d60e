"""Sends and receives messages and fds over unix sockets.

``socket.send_fds`` and ``socket.recv_fds`` ignore their flags (CPython up to 3.13, Lib/socket.py):
a send could wait, and received fds would be inherited by programs that this process starts.

The first empty answer of a SOCK_SEQPACKET socket may not be the end.  recv(2) finds the queue
empty, and looks after that whether the peer is gone: in between, the peer can have sent its
last message and ended.  The peer can send nothing after that, so a second answer is right.

Source: unix(7) SCM_RIGHTS, recv(2) MSG_CMSG_CLOEXEC; linux/net/unix/af_unix.c
__unix_dgram_recvmsg, linux/net/core/datagram.c __skb_wait_for_more_packets.
"""

from __future__ import annotations

import socket
from array import array
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_INT = array("i").itemsize
_Answer = TypeVar("_Answer")


def send_fds(sock: socket.socket, data: bytes, fds: Sequence[int], flags: int = 0) -> None:
    """Send ``data`` as one message, with copies of ``fds``.

    :raises BlockingIOError: with MSG_DONTWAIT, or on a non-blocking socket: there is no room.
    """
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))], flags)


def receive(sock: socket.socket, size: int, flags: int = 0) -> bytes:
    """Return a message of at most ``size`` bytes; no bytes are the end.

    :raises BlockingIOError: on a non-blocking socket: there is none.
    """
    if data := sock.recv(size, flags):
        return data
    return _answer_again(lambda now: sock.recv(size, flags | now), b"")


def receive_fds(sock: socket.socket, size: int, most: int) -> tuple[bytes, list[int], int]:
    """Return a message of at most ``size`` bytes, its fds, close-on-exec, and the flags.

    No bytes and no fds are the end.  The kernel closes fds after the first ``most``; the flags
    then have MSG_CTRUNC.

    :raises BlockingIOError: on a non-blocking socket: there is none.
    """
    room = socket.CMSG_LEN(most * _INT)
    answer = sock.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
    if not answer[0] and not answer[1]:
        answer = _answer_again(
            lambda now: sock.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC | now), answer
        )
    data, control, flags, _ = answer
    fds = array("i")
    for level, kind, part in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(part[: len(part) - len(part) % _INT])
    return data, list(fds), flags


def _answer_again(receive: Callable[[int], _Answer], empty: _Answer) -> _Answer:
    """Return the answer after an ``empty`` one, with the flag not to wait."""
    for _ in range(2):
        try:
            return receive(socket.MSG_DONTWAIT)
        except ConnectionResetError:
            continue  # a message to the peer is unread: reported once, before the messages
        except BlockingIOError:
            break  # a message was empty
    return empty
