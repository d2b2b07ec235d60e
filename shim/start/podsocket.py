"""The socket of a pod, whose listener is the lock of the pod.

A ``start`` binds it, or finds the shim that serves it and queries its version.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from grpclib.const import Status

from shim.api.bootstrap_pb2 import BootstrapResult
from shim.api.task_pb2 import ConnectRequest
from shim.container.bundle import Bundle, checked_id
from shim.errors import ExistsError, TimedOutError, UnavailableError
from shim.linux import sockets
from shim.linux.modes import write_file
from shim.ttrpc.protocol import ClientProtocol

if TYPE_CHECKING:
    import socket

    from shim.start.flags import Invocation

# Seconds for a running shim to reply to the query of its version.
VERSION_TIMEOUT = 5.0
# Queries, each of which can meet a shim that ends at that moment.
ATTEMPTS = 5
# A shim that replies UNIMPLEMENTED for this service speaks Task v2.
_TASK = "containerd.task.v3.Task"


def bind(invocation: Invocation) -> tuple[str, socket.socket | None, int]:
    """Bind the socket of the bundle's pod, and write its address to the bundle.

    The bundle is the working directory.  Returns the address, the listener, and the
    version of the Task API that the shim there speaks.  The listener is None if another
    shim serves the address.

    :raises InvalidError: the id or the bundle is invalid, or another user serves the address.
    :raises UnavailableError: the file ``address`` cannot be written, or the shims of the
        pod ended while they were queried.
    :raises TimedOutError: the shim at the address does not reply, and the caller needs
        its version.
    """
    checked_id(invocation.id)
    config = Bundle.open(os.getcwd()).config()  # noqa: PTH109 - the value is a plain string
    address = sockets.socket_address(
        invocation.grpc_address,
        invocation.namespace,
        config.group or invocation.id,
        invocation.socket_dir,
    )
    listener, version = _listen_or_join(address, invocation)
    try:
        write_file("address", address, 0o644)  # containerd's mode of the file
    except OSError as exc:
        with suppress(OSError):
            os.unlink("address")  # noqa: PTH108 - an incomplete address is useless
        if listener is not None:
            remove_listener(listener, address)
        here = os.getcwd()  # noqa: PTH109 - as above
        reason = (exc.strerror or "unknown error").lower()
        raise UnavailableError(f"cannot write {here}/address: {reason}") from None
    return address, listener, version


def remove_listener(listener: socket.socket, address: str) -> None:
    """Remove the socket of a listener whose address no client has, and close the listener."""
    # No other process can have replaced the socket while its listener is open.
    with suppress(OSError):
        os.unlink(sockets.socket_path(address))  # noqa: PTH108 - a plain string
    listener.close()


def _listen_or_join(address: str, invocation: Invocation) -> tuple[socket.socket | None, int]:
    """Return the listener, or None if a shim serves ``address``, and the version of that shim.

    A caller that does not read the version is answered with 2 if the shim does not reply.

    :raises TimedOutError: the shim does not reply, and the caller reads the version.
    """
    for _ in range(ATTEMPTS):
        try:
            return sockets.listen(address), 3
        except ExistsError:
            try:
                return None, _query_version(address)
            except TimedOutError:
                if invocation.modern:
                    raise
                return None, 2
            except UnavailableError:
                continue  # the shim ended after the bind failed: its address is useless now
    raise UnavailableError(
        f"cannot join a shim at {address}: {ATTEMPTS} ended during the query; "
        "see the manager's log"
    )


def encode_answer(invocation: Invocation, address: str, version: int) -> bytes:
    """Return the output of ``start``: a BootstrapResult, or the address for older managers."""
    if not invocation.modern:
        return os.fsencode(address)
    return BootstrapResult(version=version, address=address, protocol="ttrpc").SerializeToString()


def _query_version(address: str) -> int:
    """Return the version of the Task API that the shim at ``address`` speaks, 2 or 3.

    The shim can be another program than this one.

    :raises UnavailableError: the shim has ended, or ends before it replies.
    :raises TimedOutError: the shim does not reply within 5 s.
    :raises InvalidError: another user serves the socket.
    """
    # Blocking calls: every ``start`` in a pod queries, and an event loop costs more.
    protocol = ClientProtocol()
    # Without an id: an older trio shim recognises a ``start`` by that.
    query = ConnectRequest(joins=True).SerializeToString()
    _, request = protocol.encode_request(_TASK, "Connect", query)
    try:
        with sockets.connect_blocking(address, VERSION_TIMEOUT) as sock:
            sockets.check_server(sock, address)
            sock.sendall(request)
            while data := sock.recv(4096):
                for reply in protocol.receive_data(data):
                    return 2 if reply.status is Status.UNIMPLEMENTED else 3
    except BlockingIOError:
        raise TimedOutError(
            f"cannot query the shim at {address}: it does not answer; end it and retry"
        ) from None
    except ConnectionError:
        pass
    raise UnavailableError(f"cannot query the shim at {address}: it ended before it answered")
