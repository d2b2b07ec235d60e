"""Kills the containers of a dead daemon without their runtime, which may hang.

The pid of an init process is read from a file, and another process may have the pid by
now.  So a process is killed only if it is in the cgroup that config.json, or the cleanup
record, names for the container.

Runtimes without cgroups, such as gVisor started so, are out of scope: only the runtime
can identify their processes.

Source: runc libcontainer/specconv and cgroups/systemd for what cgroupsPath means.
"""

from __future__ import annotations

import os
import select
import signal
import time
from posixpath import normpath
from typing import TYPE_CHECKING

from shim import log
from shim.cgroup.find import cgroup_of
from shim.cgroup.v1 import CgroupV1
from shim.cgroup.v2 import CgroupV2
from shim.container.cleanup_records import CleanupRecord
from shim.container.options import Options
from shim.errors import NotFoundError, ShimError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shim.cgroup.find import Cgroup
    from shim.container.bundle import Bundle

# Seconds for all killed init processes to exit; their children exit before them.
_EXIT = 0.5


def kill_orphaned(records: Iterable[CleanupRecord]) -> None:
    """Kill the init processes of ``records``, and wait up to half a second for their exits.

    Of a container without its own pid namespace all processes in the cgroup are killed.
    If the processes of a container cannot be identified, none is killed.
    """
    killed: list[int] = []
    try:
        for record in records:
            killed += _kill(record)
        deadline = time.monotonic() + _EXIT
        for pidfd in killed:
            select.select([pidfd], [], [], max(0, deadline - time.monotonic()))
    finally:
        for pidfd in killed:
            os.close(pidfd)


def _kill(record: CleanupRecord) -> list[int]:
    """Kill one container; return the pidfd of its init process, if there is one."""
    if record.pid <= 0:
        return []
    try:
        pidfd = os.pidfd_open(record.pid)
    except (OSError, OverflowError):  # the file may hold any number
        return []
    try:
        cgroup = container_part(cgroup_of(record.pid), record.cgroups)
        # If another process got the pid after the pidfd was opened, the pidfd's process
        # has exited, and this fails.
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        if not record.own_pid_namespace:
            cgroup.signal_all(signal.SIGKILL)
    except (ShimError, OSError) as exc:
        log.debug("cannot kill the init process", id=record.id, pid=record.pid, error=exc)
    return [pidfd]


def cleanup_record_of(bundle: Bundle, id_: str, namespace: str) -> CleanupRecord:
    """Return the record of the container of ``bundle``, made from the files in the bundle.

    Files may be missing; then the record has no pid or no cgroups.
    """
    runtime = Options.read(bundle.path / "options.json").runtime(namespace)
    pid, cgroups, own_pid_namespace = bundle.read_pid(), [], False
    try:
        config = bundle.config()
        own_pid_namespace = config.own_pid_namespace
        if config.cgroups_path is not None:
            cgroups = cgroup_names(config.cgroups_path, id_)
    except (ShimError, OSError) as exc:
        log.debug("cannot find the cgroup of the container", id=id_, error=exc)
    return CleanupRecord(id_, str(bundle.path), runtime, pid, tuple(cgroups), own_pid_namespace)


def cgroup_names(path: str, id_: str) -> list[str]:
    """Return the possible names of a container's cgroup, as in :class:`CleanupRecord`.

    ``path`` is config.json's ``cgroupsPath``, which may be empty.
    """
    if not path:
        return [id_, f"runc-{id_}.scope", f"crun-{id_}.scope"]
    match path.split(":"):
        case [_, _, name] if name.endswith(".slice"):
            return [name]
        case [_, prefix, name]:
            return [f"{prefix}-{name}.scope" if prefix else f"{name}.scope"]
        case _:
            return [normpath(path).strip("/")]


def container_part(cgroup: Cgroup, names: Sequence[str]) -> Cgroup:
    """Return ``cgroup`` or the cgroup above it that has one of ``names``.

    :raises NotFoundError: no such cgroup exists.
    """
    if isinstance(cgroup, CgroupV2):
        if _is_group(directory := own_part(cgroup.directory, names)):
            return CgroupV2(directory, cgroup.mount)
    else:
        cut = {name: own_part(directory, names) for name, directory in cgroup.directories.items()}
        if found := {name: directory for name, directory in cut.items() if _is_group(directory)}:
            return CgroupV1(found)
    raise NotFoundError("the process is not in the cgroup of the container")


def _is_group(directory: str) -> bool:
    """Return whether ``directory`` is a cgroup below a hierarchy's root.

    An id may be "memory" or "cgroup", which are the names of mount points.
    """
    return os.path.isfile(f"{directory}/cgroup.procs") and not os.path.ismount(directory)  # noqa: PTH113 - a plain string all along


def own_part(directory: str, names: Sequence[str]) -> str:
    """Return ``directory`` up to the end of one of ``names``, or "" without any."""
    for name in names:
        before, found, _ = f"{directory}/".partition(f"/{name}/")
        if found:
            return f"{before}/{name}"
    return ""
