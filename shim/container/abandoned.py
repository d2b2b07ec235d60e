"""Kills a container whose shim is gone, whatever its runtime does or does not.

Its init is known by a number in a file, which may be anybody's by now.  A
process in the cgroup that config.json gives the container is the container's.

Not here: gVisor without cgroups and the like, whose processes only the runtime
can tell from ours.

Source: runc libcontainer/specconv and cgroups/systemd for what cgroupsPath means.
"""

from __future__ import annotations

import json
import os
import select
import signal
from posixpath import normpath
from typing import TYPE_CHECKING

from shim import log
from shim.cgroup.find import cgroup_of
from shim.cgroup.v1 import CgroupV1
from shim.cgroup.v2 import CgroupV2
from shim.errors import NotFoundError, ShimError

if TYPE_CHECKING:
    from shim.cgroup.find import Cgroup
    from shim.container.bundle import Bundle

# Seconds for a killed init to end; its children end before it does.
_GONE = 0.5


def kill_abandoned(bundle: Bundle, id_: str) -> None:
    """Kill the init of ``bundle``, and what lived in a pid namespace not its own.

    Where no process is surely the container's, nothing happens.
    """
    pid = bundle.read_pid()
    if pid <= 0:
        return
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        cgroup = _container_part(cgroup_of(pid), cgroup_names(_cgroups_path(bundle), id_))
        # If the number was given to another process since the pidfd was opened,
        # then the pidfd's own is dead, and this fails.
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        if not bundle.config().own_pid_namespace:
            cgroup.signal_all(signal.SIGKILL)
        select.select([pidfd], [], [], _GONE)
    except (ShimError, OSError) as exc:
        log.debug("the init is left to the runtime", id=id_, pid=pid, error=exc)
    finally:
        os.close(pidfd)


def cgroup_names(path: str, id_: str) -> list[str]:
    """Return what the cgroup of a container may be called, from the end of its path.

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


def _cgroups_path(bundle: Bundle) -> str:
    try:
        linux = json.loads((bundle.path / "config.json").read_bytes())["linux"]
        return str(linux.get("cgroupsPath") or "")
    except (ValueError, LookupError, TypeError, AttributeError):
        raise NotFoundError(f"{bundle.path}/config.json names no cgroup") from None


def _container_part(cgroup: Cgroup, names: list[str]) -> Cgroup:
    """Return the group of one of these names that ``cgroup`` is, or is below.

    :raises NotFoundError: there is none.
    """
    if isinstance(cgroup, CgroupV2):
        if directory := own_part(cgroup.directory, names):
            return CgroupV2(directory, cgroup.mount)
    else:
        cut = {name: own_part(directory, names) for name, directory in cgroup.directories.items()}
        if found := {name: directory for name, directory in cut.items() if directory}:
            return CgroupV1(found)
    raise NotFoundError("the process is not in the cgroup of the container")


def own_part(directory: str, names: list[str]) -> str:
    """Return ``directory`` up to the end of one of ``names``, or "" without any."""
    for name in names:
        before, found, _ = f"{directory}/".partition(f"/{name}/")
        if found:
            return f"{before}/{name}"
    return ""
