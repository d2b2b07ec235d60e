"""The socket of a pod: its listener, or the version that the shim that serves it speaks."""

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

# Seconds for a running shim, which may be about to end, to say what it speaks.
VERSION_TIMEOUT = 5.0
# Shims of one pod that may end just when they are asked.
ATTEMPTS = 5
# Who does not know it speaks version 2.
_TASK = "containerd.task.v3.Task"


def bind(invocation: Invocation) -> tuple[str, socket.socket | None, int]:
    """Return the address, its listener or None if a shim serves it, and what that speaks."""
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
        write_file("address", address, 0o644)  # the mode that containerd gives it
    except OSError as exc:
        with suppress(OSError):
            os.unlink("address")  # noqa: PTH108 - what was written of it leads nowhere
        if listener is not None:
            remove_listener(listener, address)
        here = os.getcwd()  # noqa: PTH109 - as above
        reason = (exc.strerror or "unknown error").lower()
        raise UnavailableError(f"cannot write {here}/address: {reason}") from None
    return address, listener, version


def remove_listener(listener: socket.socket, address: str) -> None:
    """Close a listener that nobody has been told of, and remove its socket."""
    # Ours without a doubt: it is alive until it is closed.
    with suppress(OSError):
        os.unlink(sockets.socket_path(address))  # noqa: PTH108 - a plain string
    listener.close()


def _listen_or_join(address: str, invocation: Invocation) -> tuple[socket.socket | None, int]:
    """Return the listener, or None if a shim serves ``address``, and the version spoken there.

    :raises TimedOutError: a shim that hangs is there, and the caller must know what it speaks.
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
                continue  # it ended after we had looked: its address would lead nowhere
    raise UnavailableError(f"every shim at {address} went away at once; see the manager's log")


def encode_answer(invocation: Invocation, address: str, version: int) -> bytes:
    if not invocation.modern:
        return os.fsencode(address)
    return BootstrapResult(version=version, address=address, protocol="ttrpc").SerializeToString()


def _query_version(address: str) -> int:
    """Ask the shim that already serves ``address``, which may be another program's.

    :raises UnavailableError: it has ended, or is about to.
    :raises TimedOutError: it does not answer.
    :raises InvalidError: another user serves it.
    """
    # Every start in a pod pays for this: an event loop costs more than the request.
    protocol = ClientProtocol()
    _, request = protocol.encode_request(_TASK, "Connect", ConnectRequest().SerializeToString())
    try:
        with sockets.connect_blocking(address, VERSION_TIMEOUT) as sock:
            sockets.check_server(sock, address)
            sock.sendall(request)
            while data := sock.recv(4096):
                for reply in protocol.receive_data(data):
                    return 2 if reply.status is Status.UNIMPLEMENTED else 3
    except BlockingIOError:
        raise TimedOutError(f"the shim at {address} does not answer; end it and retry") from None
    except ConnectionError:
        pass
    raise UnavailableError(f"the shim at {address} went away before it answered")
