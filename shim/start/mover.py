"""Checks a daemon of another fork server that asks to move to this one.

Only the user that runs a fork server, usually root, can connect to its socket, and the kernel
reports the user and the group of the daemon.  Such a process can do anything that the server
can.  So these checks only prevent mistakes: a socket that was mounted into a container, a
process that is no daemon, and a state of a version that this code cannot read.
"""

from __future__ import annotations

import json
from pathlib import Path

from shim.recovery.versions import unreadable
from shim.version import VERSION

# A process of another of these could not be found again, or its files could not.
_NAMESPACES = ("pid", "mnt", "user", "net", "ipc", "uts")
_LONGEST = 4096


def refusal(pid: int, pidfd: int, versions: str) -> str:
    """Return why the process ``pid`` is not kept; empty if it is.

    ``pidfd`` and ``versions``, those of its states as JSON, are from its request.
    """
    if not pid:
        return "it is in another pid namespace"
    try:
        if f"\nPid:\t{pid}\n" not in Path(f"/proc/self/fdinfo/{pidfd}").read_text():
            return "it sent the pidfd of another process"
        for name in _NAMESPACES:
            if (
                Path(f"/proc/{pid}/ns/{name}").readlink()
                != Path(f"/proc/self/ns/{name}").readlink()
            ):
                return f"it is in another {name} namespace"
        if _ids(str(pid)) != _ids("self"):
            return "it is not the same user"
        words = Path(f"/proc/{pid}/cmdline").read_bytes()[:_LONGEST].split(b"\0")
    except OSError as exc:
        return f"/proc does not show it: {exc.strerror}"
    if words[1:2] != [b"-namespace"]:  # the rest may be cut
        return "it is not the daemon of a shim"
    try:
        problem = unreadable(json.loads(versions))
    except (ValueError, AttributeError, TypeError):
        problem = "it sent no versions"
    return f"version {VERSION} cannot continue it: {problem}" if problem else ""


def _ids(pid: str) -> list[str]:
    lines = Path(f"/proc/{pid}/status").read_text().split("\n")
    return [line for line in lines if line.startswith(("Uid:", "Gid:"))]
