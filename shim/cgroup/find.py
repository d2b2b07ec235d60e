"""Find a process's control group on hosts with version 1, version 2, or both.

A host counts as version 2 if /sys/fs/cgroup itself is a version 2 mount.  A hybrid host
counts as version 1, since its controllers are in the version 1 hierarchies.

Source: cgroups(7) "/proc/pid/cgroup"; linux kernel/cgroup/cgroup.c proc_cgroup_show()
for " (deleted)"; containerd/cgroups cgroup1/paths.go for PidPath and StaticPath.
"""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from posixpath import normpath
from typing import TYPE_CHECKING, TypeAlias

from shim.cgroup.files import list_names, read_file
from shim.cgroup.v1 import CgroupV1
from shim.cgroup.v2 import CgroupV2
from shim.errors import NotFoundError, UnsupportedError
from shim.linux import membership, mountinfo
from shim.linux.membership import by_controller

if TYPE_CHECKING:
    from shim.linux.mountinfo import MountPoint

Cgroup: TypeAlias = CgroupV1 | CgroupV2

_TOP = "/sys/fs/cgroup"
_REMOVED = " (deleted)"


def locate(paths: dict[str, str], mounts: list[MountPoint]) -> Cgroup | None:
    """Return the control group of a process, None if it is in the root of each hierarchy.

    A root group is not the process's own: an operation on it would affect the whole host.
    """
    top = unified_mount(mounts)
    if top is not None:
        directory = _directory(top, paths.get("", "/"))
        return CgroupV2(directory, top.point) if directory else None
    directories = {}
    for controller, mount in _hierarchies(paths, mounts).items():
        if directory := _directory(mount, paths[controller]):
            directories[controller] = directory
    return CgroupV1(directories) if directories else None


def unified_mount(mounts: list[MountPoint]) -> MountPoint | None:
    """Return the mount of a version 2 host, None on a host of version 1."""
    # The last mount on a point covers the earlier ones.
    seen = [mount for mount in mounts if mount.point == _TOP]
    return seen[-1] if seen and seen[-1].fstype == "cgroup2" else None


def _hierarchies(paths: dict[str, str], mounts: list[MountPoint]) -> dict[str, MountPoint]:
    # Containers may have hierarchies mounted at other places; the host's come first.
    candidates = sorted(
        (mount for mount in mounts if mount.fstype == "cgroup"),
        key=lambda mount: not mount.point.startswith(f"{_TOP}/"),
    )
    found = {}
    for controller in paths:
        mount = next((one for one in candidates if controller in one.options), None)
        if controller and mount is not None:
            found[controller] = mount
    return found


def _directory(mount: MountPoint, path: str) -> str | None:
    shown = _shown(mount, path)
    return None if shown in (None, "/") else f"{mount.point}{shown}"


def _shown(mount: MountPoint, path: str) -> str | None:
    # A path outside our cgroup namespace has no directory in the mount.
    if ".." in PurePosixPath(path).parts:
        return None
    # In a container without a cgroup namespace, the mount has only a part of the hierarchy.
    shown = PurePosixPath(path)
    if shown.is_relative_to(mount.root):
        path = f"/{shown.relative_to(mount.root)}"
    return normpath(path)


def threads_file(paths: dict[str, str], mounts: list[MountPoint]) -> str | None:
    """Return the ``tasks`` or ``cgroup.threads`` file of a group; None if it does not exist.

    ``paths`` are the groups of a thread: writing its id there does not change its group.
    The group may be in any hierarchy, and may be a root.
    """
    top = unified_mount(mounts)
    if top is not None:
        shown = _shown(top, paths.get("", "/"))
        return None if shown is None else normpath(f"{top.point}{shown}/cgroup.threads")
    for controller, mount in _hierarchies(paths, mounts).items():
        shown = _shown(mount, paths[controller])
        if shown is not None:
            return normpath(f"{mount.point}{shown}/tasks")
    return None


def own_threads_file() -> str | None:
    """Return the :func:`threads_file` of this process."""
    return threads_file(by_controller(membership.read()), mountinfo.read())


def cgroup_of(pid: int) -> Cgroup:
    """Return the control group of ``pid``.

    :raises NotFoundError: the process is gone, or it has no group of its own.
    """
    try:
        paths = membership.read(pid)
    except (FileNotFoundError, ProcessLookupError):
        raise NotFoundError(f"cannot find the cgroup of process {pid}: it has ended") from None
    cgroup = locate(by_controller(paths), mountinfo.read())
    if cgroup is None or _is_removed(cgroup, pid):
        raise NotFoundError(
            f"cannot find the cgroup of process {pid}: it is a zombie or in the root cgroup"
        )
    return cgroup


def _is_removed(cgroup: Cgroup, pid: int) -> bool:
    """Return whether ``cgroup`` is the removed group of ``pid``, a zombie.

    For a removed group, version 2 adds " (deleted)" to the path; but a group's name may
    also end so.  An existing group lists its processes that are not zombies.
    """
    if not isinstance(cgroup, CgroupV2) or not cgroup.directory.endswith(_REMOVED):
        return False
    return str(pid) not in (read_file(f"{cgroup.directory}/cgroup.procs") or "").split("\n")


def hybrid_directory(path: str) -> str:
    """Return the directory of ``path`` in the version 2 hierarchy of a hybrid host.

    That hierarchy has no controllers, but runc makes a group in it.  "" means that there
    is no such hierarchy, or that ``path`` is its root.
    """
    for mount in mountinfo.read():
        if mount.fstype == "cgroup2" and mount.point.startswith(f"{_TOP}/"):
            return _directory(mount, path) or ""
    return ""


def cgroup_at(path: str) -> Cgroup:
    """Return the control group at ``path``, which has the format of options.shim_cgroup.

    It need not exist.  ``..`` cannot leave the hierarchy.

    :raises UnsupportedError: no control groups are mounted.
    """
    mounts = mountinfo.read()
    path = normpath("/" + path.lstrip("/"))
    top = unified_mount(mounts)
    if top is not None:
        return CgroupV2(f"{top.point}{path}", top.point)
    hierarchies = _hierarchies(by_controller(membership.read()), mounts)
    if not hierarchies:
        raise UnsupportedError(
            f"cannot find the cgroup {path}: no cgroups are mounted below /sys/fs/cgroup"
        )
    return CgroupV1({name: f"{mount.point}{path}" for name, mount in hierarchies.items()})


def existing_directories(path: str) -> frozenset[str]:
    """Return the directories of the control group ``path``, in any hierarchy, that exist.

    Reads no mount table, and so takes microseconds.
    """
    path = normpath("/" + path.lstrip("/"))
    mounts = [_TOP, *(f"{_TOP}/{name}" for name in list_names(_TOP))]
    return frozenset(found for mount in mounts if os.path.lexists(found := f"{mount}{path}"))
