"""Queries a running shim with a Connect request, in blocking calls.

Every ``start`` in a pod or of a shared daemon queries, and an event loop costs more.
"""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING

from grpclib.const import Status

from shim.api.task_pb2 import ConnectRequest
from shim.errors import ExistsError, FullError, ShimError, TimedOutError, UnavailableError
from shim.linux import sockets
from shim.linux.peers import check_server, peer_of
from shim.start.launcher import is_stuck
from shim.ttrpc.protocol import ClientProtocol

if TYPE_CHECKING:
    import socket

    from shim.ttrpc.protocol import ResponseReceived

# Seconds for a running shim to accept the connection and to reply.
TIMEOUT = 5.0
# Seconds between two looks whether the shim is stopped, and to wait for room in its backlog.
_TICK = 0.1
_CONNECT = 1.0
# A shim that replies UNIMPLEMENTED for this service speaks Task v2.
_TASK = "containerd.task.v3.Task"
_REFUSALS: dict[Status, type[ShimError]] = {
    Status.RESOURCE_EXHAUSTED: FullError,
    Status.ALREADY_EXISTS: ExistsError,
    Status.UNAVAILABLE: UnavailableError,
}


def connect(
    address: str, reservation: str = "", *, timeout: float = TIMEOUT, wait: bool = True
) -> int:
    """Send Connect for a ``start``; return the version of the Task API of the shim, 2 or 3.

    The shim can be another program than this one.  Without ``wait`` a shim that is
    stopped costs a fraction of a second, and not ``timeout`` seconds.

    :raises UnavailableError: the shim has ended, ends before it replies, or shuts down.
    :raises TimedOutError: the shim does not reply within ``timeout`` seconds, or is stopped.
    :raises FullError, ExistsError: the shim refuses the ``reservation``.
    :raises InvalidError: another user serves the socket.
    """
    protocol = ClientProtocol()
    request = ConnectRequest(joins=True, reservation=reservation)
    # Without an id: an older trio shim recognises a ``start`` by that.
    _, frame = protocol.encode_request(_TASK, "Connect", request.SerializeToString())
    deadline = time.monotonic() + timeout
    try:
        with sockets.connect_blocking(address, timeout if wait else _CONNECT) as sock:
            check_server(sock, address)
            sock.sendall(frame)
            while data := sock.recv(4096) if wait else _receive(sock, deadline):
                for reply in protocol.receive_data(data):
                    return _version(reply)
    except (BlockingIOError, TimeoutError):
        raise TimedOutError(
            f"cannot query the shim at {address}: it does not answer; end it and retry"
        ) from None
    except ConnectionError:
        pass
    raise UnavailableError(f"cannot query the shim at {address}: it ended before it answered")


def _receive(sock: socket.socket, deadline: float) -> bytes:
    """Receive bytes; an empty result is the end.

    :raises TimeoutError: the deadline has passed, or the peer is stopped.
    """
    pid = peer_of(sock).pid  # 0 for a peer in another pid namespace
    stuck = 0
    while stuck < 2 and (left := deadline - time.monotonic()) > 0:
        if select.select([sock], [], [], min(_TICK, left))[0]:
            return sock.recv(4096)
        stuck = stuck + 1 if pid and is_stuck(pid) else 0
    raise TimeoutError


def _version(reply: ResponseReceived) -> int:
    if (refusal := _REFUSALS.get(reply.status)) is not None:
        raise refusal(reply.message)
    return 2 if reply.status is Status.UNIMPLEMENTED else 3
