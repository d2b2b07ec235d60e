"""The version numbers of the saved states of a daemon: those written, and those readable.

A change of a format increases its number in ``WRITTEN``, and a new field is such a change:
a version of this project that does not know it refuses the daemon before anything moves.
``READABLE`` also has each older number that this code can read, without the new field.
``tests/recovery/stored`` has the states of each version of this project, and
CONTRIBUTING.md describes a change of a format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shim.errors import InvalidError
from shim.ttrpc import callstate

if TYPE_CHECKING:
    from collections.abc import Mapping

# ``daemon`` is the state of a daemon, ``container`` that of a container with its streams and
# the records of their output, ``expected`` that of the expected containers, ``events`` the
# record of the event that is being sent, and ``calls`` the state of a connection.  ``fds`` are
# the names of the fds, the file of a state with its turn, and the messages between the fork
# servers and daemons of two versions.
DAEMON, CONTAINER, EXPECTED, EVENTS, FDS = 1, 1, 1, 1, 1

WRITTEN = {
    "daemon": DAEMON,
    "container": CONTAINER,
    "expected": EXPECTED,
    "events": EVENTS,
    "fds": FDS,
    "calls": callstate.VERSION,
}
READABLE = {
    "daemon": (1,),
    "container": (1,),
    "expected": (1,),
    "events": (1,),
    "fds": (1,),
    "calls": callstate.READABLE,
}


def require_readable(kind: str, version: object) -> None:
    """Check the version number in a state.

    :raises InvalidError: this code cannot read it.
    """
    if problem := _unreadable(kind, version):
        raise InvalidError(f"cannot go on with a shim: {problem}")


def unreadable(versions: Mapping[str, object]) -> str:
    """Return why this code cannot read the states of ``versions``; empty if it can."""
    for kind, version in versions.items():
        if problem := _unreadable(kind, version):
            return problem
    if missing := [kind for kind in READABLE if kind not in versions]:
        return f"there is no {missing[0]} state"
    return ""


def _unreadable(kind: str, version: object) -> str:
    if kind not in READABLE:
        return f"it cannot read a state of kind {kind[:40]!r}"
    if version not in READABLE[kind]:
        known = ", ".join(map(str, READABLE[kind]))
        return f"it cannot read version {version} of the {kind} state; it reads {known}"
    return ""
