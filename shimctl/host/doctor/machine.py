"""Checks the kernel, the cgroup hierarchy and the Python of this host.

Sources: pidfd_open(2), waitid(2), mount_setattr(2), cgroups(7); README.md for the
requirements of this project.
"""

from __future__ import annotations

import os
import platform
import re
from typing import TYPE_CHECKING

from shim.linux import mountinfo
from shim.linux.files import read_whole
from shimctl.host.doctor.finding import Finding, Level

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shim.linux.mountinfo import MountPoint

_AREA = "machine"
# The first kernel that the shim runs on, and what later ones add.
_LEAST = (5, 4)
_KERNELS = (
    ((5, 12), "mapped owners of a rootfs"),
    ((5, 14), "core scheduling"),
)
_CONTROLLERS = ("cpu", "memory", "pids")


def check() -> list[Finding]:
    """Check the machine."""
    controllers: list[str] = []
    mounts = mountinfo.read()
    for mount in mounts:
        if mount.fstype == "cgroup2":
            try:
                text = read_whole(f"{mount.point}/cgroup.controllers", 4096)
                controllers += os.fsdecode(text).split()
            except OSError:
                continue
    user = [] if os.geteuid() == 0 else [not_root(os.geteuid())]
    return [
        kernel(platform.release()),
        cgroups(mounts, controllers),
        python(platform.python_version()),
        *user,
    ]


def kernel(release: str) -> Finding:
    """Judge the kernel's release, such as ``6.1.0-18-amd64``."""
    match = re.match(r"(\d+)\.(\d+)", release)
    if not match:
        return Finding(_AREA, "kernel", Level.NOTE, f"{release}, an unknown version")
    version = (int(match[1]), int(match[2]))
    if version < _LEAST:
        remedy = "install Linux 5.4 or newer"
        return Finding(_AREA, "kernel", Level.BROKEN, f"{release} has no waitid by pidfd", remedy)
    lacks = [feature for since, feature in _KERNELS if version < since]
    if lacks:
        return Finding(_AREA, "kernel", Level.NOTE, f"{release}; lacks {', '.join(lacks)}")
    return Finding(_AREA, "kernel", Level.OK, release)


def cgroups(mounts: Iterable[MountPoint], unified: Iterable[str]) -> Finding:
    """Judge the cgroup mounts; ``unified`` are the controllers of version 2."""
    two, one = "", set[str]()
    for mount in mounts:
        if mount.fstype == "cgroup2":
            two = two or mount.point
        elif mount.fstype == "cgroup":
            one |= mount.options & {*_CONTROLLERS, "freezer"}
    has = one | set(unified)
    if not two and not one:
        remedy = "mount -t cgroup2 none /sys/fs/cgroup"
        return Finding(_AREA, "cgroups", Level.BROKEN, "no hierarchy is mounted", remedy)
    mode = "version 2" if two and not one else "version 1"
    if two and one:
        mode = f"version 1, and version 2 at {two} (hybrid)"
    lacking = [name for name in _CONTROLLERS if name not in has]
    if lacking:
        text = f"{mode}; lacks {', '.join(lacking)}, so no limits and figures of these"
        remedy = "enable the controllers in the kernel's command line"
        return Finding(_AREA, "cgroups", Level.ADVICE, text, remedy)
    return Finding(_AREA, "cgroups", Level.OK, mode)


def python(version: str) -> Finding:
    """Judge this interpreter's version."""
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) < (3, 11):
        return Finding(_AREA, "python", Level.BROKEN, version, "install Python 3.11 or newer")
    if (major, minor) < (3, 12):
        text = f"{version}; a daemon takes less memory with 3.12 and 3.13"
        return Finding(_AREA, "python", Level.NOTE, text)
    return Finding(_AREA, "python", Level.OK, version)


def not_root(uid: int) -> Finding:
    """Return the advice for a caller that is not root."""
    text = f"user {uid} cannot see the shims and directories of root"
    return Finding(_AREA, "user", Level.ADVICE, text, "run `shimctl doctor` as root")
