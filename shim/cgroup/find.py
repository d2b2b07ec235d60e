"""Where a process's control group is, on hosts of version 1, version 2, or both.

A host counts as version 2 when /sys/fs/cgroup itself is; a hybrid one counts as
version 1, since its controllers are there.

Source: cgroups(7) "/proc/pid/cgroup"; proc_pid_mountinfo(5); containerd/cgroups
cgroup1/paths.go for PidPath and StaticPath.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from posixpath import normpath
from typing import TypeAlias

from shim.cgroup.files import read_file
from shim.cgroup.v1 import CgroupV1
from shim.cgroup.v2 import CgroupV2
from shim.errors import NotFoundError, UnsupportedError

Cgroup: TypeAlias = CgroupV1 | CgroupV2

_TOP = "/sys/fs/cgroup"
# mountinfo writes space, tab, newline and backslash in octal.
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of mountinfo.  ``root`` is the part of the file system mounted on ``point``."""

    fstype: str
    root: str
    point: str
    options: frozenset[str]


def parse_mountinfo(text: str) -> list[Mount]:
    """Parse /proc/PID/mountinfo; lines that make no sense are left out."""
    mounts = []
    for line in text.splitlines():
        before, dash, after = line.partition(" - ")
        match before.split(" "), after.split(" "):
            case [_, _, _, root, point, *_], [fstype, _, options, *_] if dash:
                mounts.append(
                    Mount(fstype, _unescaped(root), _unescaped(point), _options(options))
                )
    return mounts


def _options(text: str) -> frozenset[str]:
    return frozenset(text.split(","))


def _unescaped(text: str) -> str:
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), text)


def parse_membership(text: str) -> dict[str, str]:
    """Parse /proc/PID/cgroup: controllers, or "" for version 2, to paths."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        match line.split(":", 2):
            case [_, controllers, path] if path.startswith("/"):
                paths |= dict.fromkeys(controllers.split(","), path)
    return paths


def locate(membership: dict[str, str], mounts: list[Mount]) -> Cgroup | None:
    """Return the group a process has for itself, None if it has none.

    A hierarchy in whose root the process is says nothing about the process, and
    acting on that group would act on the whole host.
    """
    top = unified_mount(mounts)
    if top is not None:
        directory = _directory(top, membership.get("", "/"))
        return CgroupV2(directory, top.point) if directory else None
    directories = {}
    for controller, mount in _hierarchies(membership, mounts).items():
        if directory := _directory(mount, membership[controller]):
            directories[controller] = directory
    return CgroupV1(directories) if directories else None


def unified_mount(mounts: list[Mount]) -> Mount | None:
    """Return the mount of a version 2 host, None on a host of version 1."""
    # The last mount on a point is the one that is seen.
    seen = [mount for mount in mounts if mount.point == _TOP]
    return seen[-1] if seen and seen[-1].fstype == "cgroup2" else None


def _hierarchies(membership: dict[str, str], mounts: list[Mount]) -> dict[str, Mount]:
    # Containers may have hierarchies mounted elsewhere on the host: ours come first.
    candidates = sorted(
        (mount for mount in mounts if mount.fstype == "cgroup"),
        key=lambda mount: not mount.point.startswith(f"{_TOP}/"),
    )
    found = {}
    for controller in membership:
        mount = next((one for one in candidates if controller in one.options), None)
        if controller and mount is not None:
            found[controller] = mount
    return found


def _directory(mount: Mount, path: str) -> str | None:
    shown = _shown(mount, path)
    return None if shown in (None, "/") else f"{mount.point}{shown}"


def _shown(mount: Mount, path: str) -> str | None:
    # A path that leaves our cgroup namespace cannot be reached from here, and a
    # zombie's group may be gone.
    if ".." in PurePosixPath(path).parts or path.endswith(" (deleted)"):
        return None
    # In a container without a cgroup namespace, the mount shows only a part.
    shown = PurePosixPath(path)
    if shown.is_relative_to(mount.root):
        path = f"/{shown.relative_to(mount.root)}"
    return normpath(path)


def threads_file(membership: dict[str, str], mounts: list[Mount]) -> str | None:
    """Return a file that a thread writes itself into to be where it is, None if there is none.

    Any hierarchy will do, and its root too.
    """
    top = unified_mount(mounts)
    if top is not None:
        shown = _shown(top, membership.get("", "/"))
        return None if shown is None else normpath(f"{top.point}{shown}/cgroup.threads")
    for controller, mount in _hierarchies(membership, mounts).items():
        shown = _shown(mount, membership[controller])
        if shown is not None:
            return normpath(f"{mount.point}{shown}/tasks")
    return None


def own_threads_file() -> str | None:
    """Return the :func:`threads_file` of this process."""
    membership = parse_membership(read_file("/proc/self/cgroup") or "")
    return threads_file(membership, _own_mounts())


def cgroup_of(pid: int) -> Cgroup:
    """Return the control group of ``pid``.

    :raises NotFoundError: the process is gone, or it has no group of its own.
    """
    text = read_file(f"/proc/{pid}/cgroup")
    if text is None:
        raise NotFoundError(f"process {pid} is gone: its cgroup cannot be told")
    cgroup = locate(parse_membership(text), _own_mounts())
    if cgroup is None:
        raise NotFoundError(f"process {pid} is a zombie, or has no cgroup of its own")
    return cgroup


def cgroup_at(path: str) -> Cgroup:
    """Return the control group called ``path``, as options.shim_cgroup has it.

    It need not exist.  ``..`` does not lead out of the hierarchy.

    :raises UnsupportedError: no control groups are mounted.
    """
    mounts = _own_mounts()
    path = normpath("/" + path.lstrip("/"))
    membership = parse_membership(read_file("/proc/self/cgroup") or "")
    top = unified_mount(mounts)
    if top is not None:
        return CgroupV2(f"{top.point}{path}", top.point)
    hierarchies = _hierarchies(membership, mounts)
    if not hierarchies:
        raise UnsupportedError("no cgroups are mounted below /sys/fs/cgroup")
    return CgroupV1({name: f"{mount.point}{path}" for name, mount in hierarchies.items()})


def _own_mounts() -> list[Mount]:
    return parse_mountinfo(read_file("/proc/self/mountinfo") or "")
