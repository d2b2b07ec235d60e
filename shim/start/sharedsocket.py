"""The sockets of daemons that several containers share.

The daemons of a set are numbered.  A ``start`` asks them in order: it joins the first one
that accepts its reservation, or binds the first socket that no daemon serves.  A socket with
a listener is taken, as for a pod (:mod:`shim.start.podsocket`).

``start`` passes over a daemon that is full, is stopped or does not reply.  If a daemon ends
during the query, ``start`` binds a new socket for its number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shim.errors import ExistsError, FullError, TimedOutError, UnavailableError
from shim.linux import sockets
from shim.start import query

if TYPE_CHECKING:
    import socket

    from shim.container.reservations import Reservation
    from shim.start.sharing import Sharing

# Queries of one number, each of which can meet a daemon that ends at that moment; and
# searches, in each of which another daemon can get the pod.
ATTEMPTS = 5
# Seconds for a daemon to reply, and for each further one after one did not: a ``start``
# must end within ten seconds.
_TIMEOUT, _SHORT = 5.0, 0.3
_DAEMONS = 10_000


def listen_or_join(
    sharing: Sharing, reservation: Reservation
) -> tuple[str, socket.socket | None, int]:
    """Return an address, the listener there, and the version of the Task API spoken there.

    The listener is None if a daemon serves the address and has accepted the reservation.
    The container of a pod joins the daemon that serves the pod.

    :raises UnavailableError: all daemons ended while they were queried.
    :raises TimedOutError: the daemon of the pod does not reply.
    :raises InvalidError: another user serves an address.
    """
    for _ in range(ATTEMPTS):
        if reservation.group and (version := _join_pod(reservation)):
            return reservation.group_address, None, version
        try:
            return _find(sharing, reservation)
        except ExistsError:
            continue  # another daemon serves the pod by now
    raise UnavailableError(
        f"cannot join the shim of pod {reservation.group}: {ATTEMPTS} ended during the query; "
        "see the manager's log"
    )


def _join_pod(reservation: Reservation) -> int:
    """Return the version of the daemon that serves the pod, 0 if none does."""
    address = reservation.group_address
    if not sockets.can_connect(address):
        return 0
    try:
        return query.connect(address, reservation.encode())
    except UnavailableError:
        return 0


def _find(sharing: Sharing, reservation: Reservation) -> tuple[str, socket.socket | None, int]:
    silent = False
    for number in range(_DAEMONS):
        address = sharing.address(number)
        for _ in range(ATTEMPTS):
            listener = _listen(address, reservation)
            if listener is not None:
                return address, listener, 3
            try:
                timeout = _SHORT if silent else _TIMEOUT
                query.connect(address, reservation.encode(), timeout=timeout, wait=False)
            except UnavailableError:
                continue  # the daemon has ended since: its socket is free, or bound anew
            except FullError:
                break
            except TimedOutError:
                silent = True
                break
            return reservation.group_address or address, None, 3
    raise UnavailableError(f"cannot find a shim to share: {_DAEMONS} are full or do not answer")


def _listen(address: str, reservation: Reservation) -> socket.socket | None:
    """Bind ``address``, and give the socket the pod's address too; None if it is served.

    :raises ExistsError: another daemon serves the pod.
    """
    try:
        listener = sockets.listen(address)
    except ExistsError:
        return None
    try:
        if reservation.group_address:
            sockets.add_address(address, reservation.group_address)
    except BaseException:
        sockets.remove_bound(listener, address)
        raise
    return listener
