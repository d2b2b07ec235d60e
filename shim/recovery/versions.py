"""The version numbers of the saved states of a daemon: those written, and those readable.

A change of a format increases its number in ``WRITTEN``.  ``READABLE`` also has each older
number that this code can read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shim.ttrpc import callstate

if TYPE_CHECKING:
    from collections.abc import Mapping

# The state of a daemon, of a container, of the expected containers, and the names of the fds.
DAEMON, CONTAINER, EXPECTED, FDS = 1, 1, 1, 1

WRITTEN = {
    "daemon": DAEMON,
    "container": CONTAINER,
    "expected": EXPECTED,
    "fds": FDS,
    "calls": callstate.VERSION,
}
READABLE = {kind: (version,) for kind, version in WRITTEN.items()}


def unreadable(versions: Mapping[str, object]) -> str:
    """Return why this code cannot read the states of ``versions``; empty if it can."""
    for kind, version in versions.items():
        if kind not in READABLE:
            return f"it cannot read a state of kind {kind[:40]!r}"
        if version not in READABLE[kind]:
            known = ", ".join(map(str, READABLE[kind]))
            return f"it cannot read version {version} of the {kind} state; it reads {known}"
    if missing := [kind for kind in READABLE if kind not in versions]:
        return f"there is no {missing[0]} state"
    return ""
