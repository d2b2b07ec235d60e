"""Requests of a daemon to a fork server, to keep its fds: ``register`` and ``keep``.

The daemon connects to the server's socket, as a launcher does, and sends the verb, the versions
of its states, one end of a channel and its own pidfd.  The server answers by a JSON object: an
empty one, or one with the reason of a refusal as ``error``.  It closes the connection without an
answer if it is outdated, or stops.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress

import trio

from shim.linux import sockets
from shim.linux.fdpassing import receive, send_fds
from shim.linux.peers import Peer, peer_of
from shim.recovery.versions import WRITTEN

KEEP = b"keep"  # as :data:`shim.recovery.messages.REGISTER`, but for a move
_LONGEST = 4096  # bytes of an answer
_ROOM = 8 << 20  # bytes of fds on their way
_SO_SNDBUFFORCE = 32


def open_channel() -> tuple[socket.socket, socket.socket]:
    """Return the daemon's end of a channel, with room for many fds, and the server's end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with suppress(OSError):  # only root may
        ours.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _ROOM)
    return ours, theirs


def open_connection() -> socket.socket:
    """Return a socket for one request."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.setblocking(False)
    return sock


async def connect(sock: socket.socket, path: str) -> Peer:
    """Connect to the server at ``path``, also if its backlog is full; return its process.

    :raises UnavailableError: no process listens there.
    """
    # The kernel reports no event when the backlog has room.
    while not sockets.try_connect(sock, f"unix://{path}"):  # noqa: ASYNC110
        await trio.sleep(sockets.PAUSE)
    return peer_of(sock)


def is_own(server: Peer) -> bool:
    """Return whether a server has the user and the group of this process."""
    return (server.uid, server.gid) == (os.geteuid(), os.getegid())


def send(sock: socket.socket, verb: bytes, channel: socket.socket) -> None:
    """Send the request ``verb`` with a copy of the server's end of the channel."""
    own = os.pidfd_open(os.getpid())
    try:
        request = b"\0".join([verb, json.dumps(WRITTEN).encode()])
        send_fds(sock, request, [channel.fileno(), own])
    finally:
        os.close(own)


def receive_answer(sock: socket.socket) -> str | None:
    """Return why the server refuses, "" if it does not, None if it does not answer any more.

    :raises BlockingIOError: there is no answer yet.
    """
    if not (answer := receive(sock, _LONGEST)):
        return None
    try:
        return str(json.loads(answer).get("error", ""))
    except (ValueError, AttributeError, RecursionError):
        return "its answer is no JSON object"
