"""Being where another process is: its cgroups, in every hierarchy that is mounted.

Source: cgroups(7).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from shim.errors import InvalidError, NotFoundError
from shim.linux import membership, mountinfo

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shim.linux.mountinfo import MountPoint

# Those a fork server shares with its callers; its cgroup it can still change.
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")


def join(pid: int) -> None:
    """Enter the cgroups of ``pid``, wherever ours are others.

    :raises NotFoundError: there is no such process, or a hierarchy is not mounted.
    :raises InvalidError: it is in other namespaces than we.
    """
    process = Path(f"/proc/{pid}")
    try:
        theirs = membership.read(pid)
        for name in _NAMESPACES:
            if (process / "ns" / name).readlink() != Path("/proc/self/ns", name).readlink():
                raise InvalidError(
                    f"process {pid} is in another {name} namespace; "
                    f"enter it with nsenter --target {pid} and try again"
                )
    except (FileNotFoundError, ProcessLookupError):
        raise NotFoundError(f"there is no process {pid}") from None
    ours = membership.read()
    roots = roots_of(ours, mountinfo.read())
    for names, path in theirs.items():
        if ours.get(names) == path:
            continue
        if names not in roots:
            raise NotFoundError(f"the cgroups of {names or 'version 2'} are not mounted")
        Path(f"{roots[names]}{path}", "cgroup.procs").write_text(str(os.getpid()))


def roots_of(hierarchies: Iterable[str], mounts: Iterable[MountPoint]) -> dict[str, str]:
    """Return where each hierarchy is mounted, by its name in /proc/pid/cgroup."""
    found: dict[str, str] = {}
    for mount in mounts:
        if mount.fstype == "cgroup2":
            found.setdefault("", mount.point)
        elif mount.fstype == "cgroup":
            for name in filter(None, hierarchies):
                if set(name.split(",")) <= mount.options:
                    found.setdefault(name, mount.point)
    return found
