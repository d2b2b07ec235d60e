"""Moves this process into the cgroups of another process, in every mounted hierarchy.

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

# A fork server serves only callers in its own namespaces.  join changes only the cgroup.
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")


def join(pid: int) -> None:
    """Move this process into the cgroups of process ``pid``, in every hierarchy.

    :raises NotFoundError: there is no such process, or a hierarchy is not mounted.
    :raises InvalidError: the process is in another namespace than this one.
    :raises OSError: the kernel refuses the move.
    """
    process = Path(f"/proc/{pid}")
    try:
        theirs = membership.read(pid)
        for name in _NAMESPACES:
            if (process / "ns" / name).readlink() != Path("/proc/self/ns", name).readlink():
                raise InvalidError(
                    f"cannot join the cgroups of process {pid}: "
                    f"it is in another {name} namespace; "
                    f"enter that with nsenter --target {pid} and try again"
                )
    except (FileNotFoundError, ProcessLookupError):
        raise NotFoundError(f"there is no process {pid}") from None
    ours = membership.read()
    roots = roots_of(ours, mountinfo.read())
    for names, path in theirs.items():
        if ours.get(names) == path:
            continue
        if names not in roots:
            hierarchy = names or "version 2"
            raise NotFoundError(
                f"cannot join the cgroups of process {pid}: those of {hierarchy} are not mounted"
            )
        Path(f"{roots[names]}{path}", "cgroup.procs").write_text(str(os.getpid()))


def roots_of(hierarchies: Iterable[str], mounts: Iterable[MountPoint]) -> dict[str, str]:
    """Return the mount point of each hierarchy, by its name in /proc/pid/cgroup."""
    found: dict[str, str] = {}
    for mount in mounts:
        if mount.fstype == "cgroup2":
            found.setdefault("", mount.point)
        elif mount.fstype == "cgroup":
            for name in filter(None, hierarchies):
                if set(name.split(",")) <= mount.options:
                    found.setdefault(name, mount.point)
    return found
