"""What is left of a container after its end: processes, mounts and control groups.

A shim's ``delete`` may fail, or the runtime hang.  What is looked for is noted before
the end, while the init process can be told from others: its pidfd, and the groups on
its way that have the container's name.  A pid in a file may be another process's by
now, and is believed only if that process is in such a group.

Source: runc libcontainer/specconv and cgroups/systemd for the names of groups.
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

_CONFIG = 64 << 20  # bytes of config.json that are read
_SHOWN = 8  # names of a kind in a message


class RemainsError(WrongStateError):
    """A container could not be removed; what is left of it is in the attributes.

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
            f"{container} could not be deleted; these remain: {'; '.join(parts)}. "
            "End the processes and delete it again"
        )


def _listed(values: tuple[object, ...]) -> str:
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return ", ".join(map(str, values[:_SHOWN])) + more


@dataclass(slots=True)
class Traces:
    """Where to look for what is left of one container.  :meth:`close` lets go of it."""

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
        """Return the pids of what still runs."""
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
        """Look once; ``mounts`` also at what is mounted on the rootfs.

        :raises RemainsError: something is left.
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
    """Note where the container of ``bundle`` is, as far as that can be told.

    ``pid`` is its init's, as the shim has it; by default what the bundle says.
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
    # A group that is named in full is looked for without its init, too.
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


def _names(bundle: Path, container: str) -> list[str]:
    """Return what the container's group may be called; one with a slash is a whole path."""
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
    """Give the part of ``path`` up to the end of one of ``names``."""
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
