"""Being where another process is: its cgroups, in every hierarchy that is mounted.

Source: cgroups(7), /proc/pid/cgroup; proc(5), /proc/pid/mountinfo.
"""

from __future__ import annotations

import os
from pathlib import Path

from shim.errors import InvalidError, NotFoundError

# Those a fork server shares with its callers; its cgroup it can still change.
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")


def join(pid: int) -> None:
    """Enter the cgroups of ``pid``, wherever ours are others.

    :raises NotFoundError: there is no such process, or a hierarchy is not mounted.
    :raises InvalidError: it is in other namespaces than we.
    """
    process = Path(f"/proc/{pid}")
    try:
        theirs = (process / "cgroup").read_text().splitlines()
        for name in _NAMESPACES:
            if (process / "ns" / name).readlink() != Path("/proc/self/ns", name).readlink():
                raise InvalidError(
                    f"process {pid} is in another {name} namespace; "
                    f"enter it with nsenter --target {pid} and try again"
                )
    except (FileNotFoundError, ProcessLookupError):
        raise NotFoundError(f"there is no process {pid}") from None
    ours = Path("/proc/self/cgroup").read_text().splitlines()
    roots = _roots([line.split(":", 2)[1] for line in ours])
    for line in theirs:
        if line in ours:
            continue
        _, names, path = line.split(":", 2)
        if names not in roots:
            raise NotFoundError(f"the cgroups of {names or 'version 2'} are not mounted")
        Path(f"{roots[names]}{path}", "cgroup.procs").write_text(str(os.getpid()))


def _roots(hierarchies: list[str]) -> dict[str, str]:
    """Return where each hierarchy is mounted, by its name in /proc/pid/cgroup."""
    found: dict[str, str] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, filesystem = line.partition(" - ")
        target = mount.split()[4]
        kind, _, options = filesystem.split()[:3]
        if kind == "cgroup2":
            found.setdefault("", target)
        elif kind == "cgroup":
            given = set(options.split(","))
            for name in filter(None, hierarchies):
                if set(name.split(",")) <= given:
                    found.setdefault(name, target)
    return found
