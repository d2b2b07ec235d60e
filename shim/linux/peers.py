"""The process at the other end of a connected Unix socket, and whether it can be trusted.

Source: unix(7), SO_PEERCRED.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import NamedTuple, Protocol

from shim.errors import InvalidError

_PEERCRED = struct.Struct("iII")  # pid, uid, gid; see SO_PEERCRED in unix(7)


class HasPeer(Protocol):
    """A connected Unix socket of the standard library, trio or asyncio."""

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes: ...


class Peer(NamedTuple):
    """The process at the other end of a connection, as it was at connect or listen.

    ``pid`` is 0 if the process is outside our pid namespace.
    """

    pid: int
    uid: int
    gid: int


def peer_of(sock: HasPeer) -> Peer:
    """Return the process at the other end of ``sock``.  SO_PEERCRED, unix(7)."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
    return Peer(*_PEERCRED.unpack(raw))


def check_server(sock: HasPeer, address: str) -> None:
    """Check that root or our own user serves the connection ``sock``, before data is sent.

    :raises InvalidError: another user serves it, and would receive confidential data.
    """
    uid = peer_of(sock).uid
    if uid not in (0, os.geteuid()):
        raise InvalidError(
            f"{address} is served by user {uid} and not by root or user {os.geteuid()}: "
            "nothing was sent; find the process that made the socket, and remove the socket"
        )
