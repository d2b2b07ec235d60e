"""Find the processes, mounts and cgroups that remain of a container after its deletion.

Some remain if a shim's ``delete`` fails or the runtime hangs.  Before the deletion the init
process can still be identified.  So :func:`traces_of` then opens its pidfd, and notes the
cgroups on its path that have the container's name.  The kernel may have reused a pid that was
read from a file, so that pid counts only if its process is in such a cgroup.

Source: runc libcontainer/specconv and cgroups/systemd for the names of cgroups.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from shim.errors import WrongStateError
from shim.linux import membership, mountinfo
from shim.linux.files import read_whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shim.linux.mountinfo import MountPoint

_CONFIG = 64 << 20  # the most bytes of config.json that are read
_SHOWN = 8  # the most pids, mounts or cgroups in a message


class RemainsError(WrongStateError):
    """A container could not be removed; the attributes list its remains.

    ``processes`` are pids, ``mounts`` and ``cgroups`` are paths.
    """

    def __init__(
        self,
        container: str,
        processes: tuple[int, ...] = (),
        mounts: tuple[str, ...] = (),
        cgroups: tuple[str, ...] = (),
    ) -> None:
        self.processes, self.mounts, self.cgroups = processes, mounts, cgroups
        parts = [
            f"{name} {_listed(values)}"
            for name, values in (
                ("processes", processes),
                ("mounts", mounts),
                ("cgroups", cgroups),
            )
            if values
        ]
        super().__init__(
            f"cannot delete {container}; these remain: {'; '.join(parts)}. "
            "End the processes and delete it again"
        )


def _listed(values: tuple[object, ...]) -> str:
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return ", ".join(map(str, values[:_SHOWN])) + more


@dataclass(slots=True)
class Traces:
    """Where to look for remains of one container.  :meth:`close` closes the pidfd."""

    container: str
    bundle: Path
    cgroups: list[str] = field(default_factory=list)
    pid: int = 0
    pidfd: int = -1

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def processes(self) -> tuple[int, ...]:
        """Return the pids of the container's processes that still run."""
        found = set()
        for group in self.cgroups:
            for folder, _, names in os.walk(group):
                if "cgroup.procs" in names:
                    with suppress(OSError):
                        text = Path(folder, "cgroup.procs").read_text()
                        found |= {int(word) for word in text.split()}
        if self.pidfd >= 0 and not _has_ended(self.pidfd):
            found.add(self.pid)
        return tuple(sorted(found - {0}))

    def check(self, *, mounts: bool) -> None:
        """Check once; with ``mounts`` also for mounts on and below the rootfs.

        :raises RemainsError: something remains.
        """
        left = (
            self.processes(),
            tuple(mountinfo.mounts_below(str(self.bundle / "rootfs"))) if mounts else (),
            tuple(group for group in self.cgroups if os.path.isdir(group)),  # noqa: PTH112
        )
        if any(left):
            raise RemainsError(self.container, *left)


def _has_ended(pidfd: int) -> bool:
    import select

    return bool(select.select([pidfd], [], [], 0)[0])


def traces_of(bundle: Path, container: str, pid: int = 0) -> Traces:
    """Collect where to look for remains of the container in ``bundle``.

    ``pid`` is that of its init process, from the shim; the default is the pid in the
    bundle's ``init.pid``.
    """
    names = _names(bundle, container)
    trusted = pid > 0
    if not trusted:
        with suppress(OSError, ValueError):
            pid = int(read_whole(str(bundle / "init.pid"), 64))
    traces = Traces(container, bundle)
    try:
        mounts = [one for one in mountinfo.read() if one.fstype in ("cgroup", "cgroup2")]
    except OSError:
        return traces
    # A cgroup whose whole path is known needs no init process to be found.
    found = [f"/{name.strip('/')}" for name in names if "/" in name]
    with suppress(OSError, OverflowError, ValueError):
        pidfd = os.pidfd_open(pid) if pid > 0 else -1
        groups = [own for path in membership.read(pid).values() for own in _own(path, names)]
        if pidfd >= 0 and (groups or trusted):
            traces.pid, traces.pidfd = pid, pidfd
        elif pidfd >= 0:
            os.close(pidfd)
        found += groups
    traces.cgroups = list(dict.fromkeys(_directories(found, mounts)))
    return traces


def is_in_cgroup_of(bundle: Path, container: str, pid: int) -> bool:
    """Return whether process ``pid`` is in the cgroup of the container, or below it.

    :raises OSError: there is no such process.
    """
    names = _names(bundle, container)
    return any(any(_own(path, names)) for path in membership.read(pid).values())


def _names(bundle: Path, container: str) -> list[str]:
    """Return the possible names of the container's cgroup; a name with a slash is a path."""
    path = ""
    with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        config = json.loads(read_whole(str(bundle / "config.json"), _CONFIG))
        path = str(config["linux"].get("cgroupsPath") or "")
    match path.split(":"):
        case [_, _, name] if name.endswith(".slice"):
            return [name]
        case [_, prefix, name]:
            return [f"{prefix}-{name}.scope" if prefix else f"{name}.scope"]
        case [name] if name.strip("/"):
            return [os.path.normpath(f"/{name.strip('/')}")]
    return [container, f"runc-{container}.scope", f"crun-{container}.scope"]


def _own(path: str, names: list[str]) -> Iterator[str]:
    """Yield the part of ``path`` that ends with one of ``names``."""
    for name in names:
        before, found, _ = f"{path}/".partition(f"/{name.strip('/')}/")
        if found:
            yield f"{before}/{name.strip('/')}"


def _directories(paths: list[str], mounts: list[MountPoint]) -> Iterator[str]:
    for mount in mounts:
        for path in paths:
            inside = os.path.relpath(path, mount.root)
            if not inside.startswith(".."):
                directory = f"{mount.point}/{inside}"
                if os.path.isdir(directory):  # noqa: PTH112
                    yield directory
