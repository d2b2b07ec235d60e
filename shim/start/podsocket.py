"""Binds the socket of a container or a pod, so that concurrent ``start`` calls make one daemon.

The first ``start`` binds the socket.  Any other finds the shim that listens on it, and queries
its version.  :mod:`shim.start.sharedsocket` does this for a container in a shared daemon.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shim.api.bootstrap_pb2 import BootstrapResult
from shim.container.bundle import Bundle, checked_id
from shim.container.reservations import Reservation
from shim.errors import ExistsError, TimedOutError, UnavailableError
from shim.linux import sockets
from shim.linux.modes import write_file
from shim.start import query, sharedsocket
from shim.start.sharing import sharing_of

if TYPE_CHECKING:
    import socket

    from shim.container.bundle import Config
    from shim.start.flags import Invocation
    from shim.start.sharing import Origin

# Queries, each of which can meet a shim that ends at that moment.
ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Place:
    """Where a container is served.

    ``address`` is for the manager, ``bound`` is the one that ``listener`` is bound to.  The
    listener is None if another shim serves the address.  ``version`` is that of the Task
    API there.  ``first`` is the reservation of the container for which a shared daemon is
    started, None for another daemon.
    """

    address: str
    bound: str
    listener: socket.socket | None
    version: int
    first: Reservation | None = None

    def close(self) -> None:
        """Remove the socket and close the listener; no client has the address yet."""
        if self.listener is not None:
            sockets.remove_bound(self.listener, self.bound)


def bind(invocation: Invocation, origin: Origin) -> Place:
    """Bind a socket for the bundle's container, or find the shim that serves it.

    The bundle is the working directory; the address is written to its file ``address``.

    :raises InvalidError: the id, the bundle or a setting is invalid, or another user serves
        the address.
    :raises UnavailableError: the file ``address`` cannot be written, or the shims that
        could serve the container ended while they were queried.
    :raises TimedOutError: the shim at the address does not reply, and the caller needs
        its version.
    """
    checked_id(invocation.id)
    here = os.getcwd()  # noqa: PTH109 - the value is a plain string
    config = Bundle.open(here).config()
    place = _find_place(invocation, config, origin, here)
    try:
        write_file("address", place.address, 0o644)  # containerd's mode of the file
    except OSError as exc:
        with suppress(OSError):
            os.unlink("address")  # noqa: PTH108 - an incomplete address is useless
        place.close()
        reason = (exc.strerror or "unknown error").lower()
        raise UnavailableError(f"cannot write {here}/address: {reason}") from None
    return place


def _find_place(invocation: Invocation, config: Config, origin: Origin, bundle: str) -> Place:
    address = sockets.socket_address(
        invocation.grpc_address,
        invocation.namespace,
        config.group or invocation.id,
        invocation.socket_dir,
    )
    sharing = sharing_of(invocation, config, origin)
    if sharing is None:
        listener, version = _listen_or_join(address, invocation)
        return Place(address, address, listener, version)
    group_address = address if config.group else ""
    first = Reservation(invocation.id, bundle, config.group, group_address, sharing.most)
    bound, listener, version = sharedsocket.listen_or_join(sharing, first)
    return Place(group_address or bound, bound, listener, version, first)


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
                return None, query.connect(address)
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
