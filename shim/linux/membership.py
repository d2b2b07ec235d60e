"""The control group of a process in each hierarchy.

Source: cgroups(7), "/proc/pid/cgroup"; linux kernel/cgroup/cgroup.c
proc_cgroup_show() and cgroup_mkdir(), which rejects ``\\n`` in a name and no other byte.
"""

from __future__ import annotations

import os


def parse(data: bytes) -> dict[str, str]:
    """Parse /proc/PID/cgroup; return a path for the controllers of each hierarchy.

    A key has the controllers as the kernel joins them, ``cpu,cpuacct``; the key of
    version 2 is empty.  Invalid UTF-8 becomes surrogates, as in :func:`os.fsdecode`.
    """
    paths = {}
    for line in data.split(b"\n"):
        match line.split(b":", 2):
            case [_, controllers, path] if path.startswith(b"/"):
                paths[os.fsdecode(controllers)] = os.fsdecode(path)
    return paths


def read(pid: int | str = "self") -> dict[str, str]:
    """Return the groups of a process.

    :raises FileNotFoundError, ProcessLookupError: there is no such process.
    """
    with open(f"/proc/{pid}/cgroup", "rb") as file:
        return parse(file.read())


def by_controller(paths: dict[str, str]) -> dict[str, str]:
    """Return ``paths`` with an entry for each controller alone."""
    return {one: path for names, path in paths.items() for one in names.split(",")}
