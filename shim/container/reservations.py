"""The reservations of a shared daemon: containers that it accepted before their Create.

``start`` sends a reservation before it replies with the daemon's address, in a field of Connect
that other shims ignore.  So the daemon does not end before the Create, and it never accepts
more containers than its number.

The socket of a pod is named after the pod, so that each ``start`` of the pod finds its daemon.
In a shared daemon that name is a second name of the daemon's socket.

Source: none; this project defines the messages.
"""

from __future__ import annotations

import json
import os
import resource
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import trio

from shim import log
from shim.container.expected import restored_time, saved_time
from shim.errors import FullError, InvalidError, ShimError
from shim.linux import sockets
from shim.linux.files import read_whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Seconds from the reply of ``start`` to the Create of its container.
LIMIT = 10.0
# The part of the limit of open files that may be in use when a container is accepted.
_FILES_USED = 3 / 4
_ID_LONGEST = 256  # bytes
_LATE = 1000  # late containers to remember: no Create arrived in time


@dataclass(frozen=True, slots=True)
class Reservation:
    """A container that a daemon is asked to serve.

    ``group`` is the id of its pod and ``group_address`` the address of the pod's socket; both
    are empty without a pod.  ``most`` is the number of containers that the daemon serves
    at most, 0 for no limit.
    """

    id: str
    bundle: str
    group: str = ""
    group_address: str = ""
    most: int = 0

    def encode(self) -> str:
        """Return the text for the field ``reservation`` of a Connect request."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Reservation:
        """Return the reservation in the field of a Connect request.

        :raises InvalidError: it is malformed.
        """
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        match value:
            case {
                "id": str(id_),
                "bundle": str(bundle),
                "group": str(group),
                "group_address": str(address),
                "most": int(most),
            }:
                return cls(id_, bundle, group, address, most)
        raise InvalidError("invalid reservation: a field is missing or of a wrong type")


@dataclass(slots=True)
class _Pod:
    """``address`` is that of the pod's socket, ``bundle`` that of its first container."""

    address: str
    bundle: str
    ids: set[str]


class Reservations:
    """The reservations of the daemon that listens on ``address``.

    ``bundle`` is that of the container for which the daemon was started.  ``first`` is the
    reservation of that container; without it, the daemon serves one container or one pod.
    ``state`` is the :meth:`state` that the daemon had which this one replaces.
    """

    def __init__(
        self,
        bundle: str = "",
        address: str = "",
        first: Reservation | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._bundle = bundle
        self._address = address
        self._is_shared = first is not None
        # Until its Create: the time after which it is no longer expected.
        self._deadlines: dict[str, float] = {}
        self._late: dict[str, None] = {}  # whose Create did not arrive in time
        self._accepted: dict[str, Reservation] = {}  # until the container is deleted
        self._pods: dict[str, _Pod] = {}
        if state is not None:
            self._restore(state)
        elif first is not None:
            self._accept(first)

    def state(self) -> dict[str, Any]:
        """Return the present state, as a value for JSON."""
        return {
            "accepted": [asdict(one) for one in self._accepted.values()],
            "deadlines": {id_: saved_time(at) for id_, at in self._deadlines.items()},
            "late": list(self._late),
            "pods": {
                group: [pod.address, pod.bundle, sorted(pod.ids)]
                for group, pod in self._pods.items()
            },
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        accepted = [Reservation(**one) for one in state["accepted"]]
        self._accepted = {one.id: one for one in accepted}
        self._deadlines = {id_: restored_time(at) for id_, at in state["deadlines"].items()}
        self._late = dict.fromkeys(state["late"])
        self._pods = {
            group: _Pod(address, bundle, set(ids))
            for group, (address, bundle, ids) in state["pods"].items()
        }

    def add(self, reservation: Reservation, containers: Iterable[str]) -> None:
        """Accept ``reservation``; ``containers`` are the ids in use.

        :raises FullError: the daemon has as many containers as it may have, or as its limit
            of open files allows.  A further container of a pod is always accepted.
        :raises ExistsError: another daemon serves the pod.
        """
        self._expire()
        if reservation.group not in self._pods:
            others = {*containers, *self._deadlines} - {reservation.id}
            if 0 < reservation.most <= len(others):
                raise FullError(f"this shim serves {len(others)} containers already")
            if not _has_free_files():
                raise FullError("this shim has few open files left: raise the manager's limit")
        self._accept(reservation)

    def _accept(self, reservation: Reservation) -> None:
        if reservation.group:
            if reservation.group_address:
                sockets.add_address(self._address, reservation.group_address)
            pod = _Pod(reservation.group_address, reservation.bundle, set())
            self._pods.setdefault(reservation.group, pod).ids.add(reservation.id)
        self._accepted[reservation.id] = reservation
        self._deadlines[reservation.id] = trio.current_time() + LIMIT

    @property
    def expected_until(self) -> float:
        """The time after which no Create is expected any more, 0 if none is expected."""
        self._expire()
        return max(self._deadlines.values(), default=0.0)

    def fulfil(self, id_: str) -> None:
        """Note the Create of container ``id_``."""
        self._deadlines.pop(id_, None)
        self._late.pop(id_, None)

    def join_pod(self, id_: str, group: str) -> None:
        """Note that container ``id_`` is in the pod ``group``, also without a ``start``."""
        if group in self._pods:
            self._pods[group].ids.add(id_)

    def drop(self, id_: str) -> bool:
        """Forget container ``id_``: it was deleted, or will not be created.

        Return whether it was known.
        """
        self.fulfil(id_)
        known = self._accepted.pop(id_, None) is not None
        for group, pod in list(self._pods.items()):
            known = known or id_ in pod.ids
            pod.ids.discard(id_)
            if not pod.ids:
                del self._pods[group]
                self._remove_address(pod)
        return known

    def close(self) -> None:
        """Remove the addresses of all pods."""
        for pod in self._pods.values():
            self._remove_address(pod)
        self._pods.clear()

    def address_of(self, group: str) -> str:
        """Return the address of the pod ``group``, "" if it is that of the daemon."""
        return self._pods[group].address if group in self._pods else ""

    def first_bundle(self, id_: str, bundle: str, group: str) -> str:
        """Return the bundle whose ``delete`` also ends container ``id_``.

        It is that of the pod's first container.  Empty for a container that has no pod
        and was started itself: then its own ``delete`` ends it.
        """
        if not self._is_shared:
            return self._bundle
        if group in self._pods:
            return self._pods[group].bundle
        if id_ in self._accepted:
            return ""
        with suppress(OSError):
            # containerd writes the id of the sandbox for a container without a ``start``.
            sandbox = os.fsdecode(read_whole(f"{bundle}/sandbox", _ID_LONGEST))
            if sandbox in self._accepted:
                return self._accepted[sandbox].bundle
        return self._bundle

    def _expire(self) -> None:
        """Stop waiting for late containers, but remember them: their Create may still arrive."""
        now = trio.current_time()
        for id_ in [id_ for id_, deadline in self._deadlines.items() if deadline <= now]:
            del self._deadlines[id_]
            self._late[id_] = None
        while len(self._late) > _LATE:
            self.drop(next(iter(self._late)))

    def _remove_address(self, pod: _Pod) -> None:
        if pod.address:
            try:
                sockets.remove_address(self._address, pod.address)
            except (ShimError, OSError) as exc:
                log.warning("cannot remove a pod's socket", address=pod.address, error=exc)


def _has_free_files() -> bool:
    """Return whether this process may open enough files for one more container."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return True
    try:
        lowest = os.dup(0)  # the kernel gives out the lowest free number
    except OSError:
        return False
    os.close(lowest)
    return lowest < limit * _FILES_USED
