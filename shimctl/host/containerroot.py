"""Open the root directory of a container, in the mount namespace of its init process.

The init process shows all mounts of the container, also while the container is paused.
If the init process does not run, only the rootfs can be opened, without volumes, and only if
it is still mounted or is a plain directory.

Source: proc(5), /proc/PID/root; pidfd_open(2), because a pid may be reused; OCI runtime
specification, config.md ("Root").
"""

from __future__ import annotations

import json
import os
import select
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shim.errors import InvalidError, NotFoundError, WrongStateError
from shim.linux.files import read_whole
from shimctl.host.inroot import root_of
from shimctl.host.ownership import Ids, ids_of_config, ids_of_process

if TYPE_CHECKING:
    from collections.abc import Iterator

_CONFIG = 64 << 20  # the most bytes of config.json that are read
# File systems whose files are views of the kernel: a copy of the root leaves them out.
_PSEUDO = frozenset(
    {
        *("proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue", "securityfs", "debugfs"),
        *("tracefs", "bpf", "pstore", "configfs", "fusectl", "binfmt_misc", "efivarfs"),
    }
)


@dataclass(frozen=True, slots=True)
class ContainerRoot:
    """``fd`` is the root directory, ``pseudo`` the devices of the kernel's own mounts."""

    fd: int
    ids: Ids
    pseudo: frozenset[int] = frozenset()


@contextmanager
def open_root(container: str, pid: int, bundle: str) -> Iterator[ContainerRoot]:
    """Open the root of a container; ``pid`` is 0 if its init process does not run.

    :raises WrongStateError: the init process does not run, and the rootfs is not mounted.
    :raises NotFoundError: the init process ended meanwhile.
    """
    if not pid:
        with _open_rootfs(container, Path(bundle)) as root:
            yield root
        return
    ended = NotFoundError(f"the init process of {container} has ended; try again")
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        raise ended from None
    try:
        try:
            with root_of(pid) as fd:
                root = ContainerRoot(fd, ids_of_process(pid), _pseudo_devices(pid))
                # Until now the pid was not reused, so these are of the init process.
                if select.select([pidfd], [], [], 0)[0]:
                    raise ended
                yield root
        except (FileNotFoundError, ProcessLookupError):
            raise ended from None
    finally:
        os.close(pidfd)


@contextmanager
def _open_rootfs(container: str, bundle: Path) -> Iterator[ContainerRoot]:
    config = _config(bundle)
    root = config.get("root")
    path = bundle / str(root.get("path", "rootfs") if isinstance(root, dict) else "rootfs")
    remedy = "start it, or copy before it exits"
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise WrongStateError(
            f"{container} has no running init process, and its rootfs {path} cannot be "
            f"opened: {exc.strerror}; {remedy}"
        ) from None
    try:
        with os.scandir(path) as names:
            empty = next(names, None) is None
        if empty:
            raise WrongStateError(
                f"{container} has no running init process, and its rootfs {path} is not "
                f"mounted; {remedy}"
            )
        yield ContainerRoot(fd, ids_of_config(config))
    finally:
        os.close(fd)


def _config(bundle: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_whole(str(bundle / "config.json"), _CONFIG))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidError(f"{bundle / 'config.json'} cannot be read, so its rootfs is unknown")
    return found


def _pseudo_devices(pid: int) -> frozenset[int]:
    """Return the device numbers of the kernel's own file systems that ``pid`` sees."""
    found = set()
    with open(f"/proc/{pid}/mountinfo", "rb") as table:
        for line in table.read().split(b"\n"):
            before, dash, after = line.partition(b" - ")
            fields = before.split(b" ")
            if dash and after.split(b" ")[0].decode(errors="replace") in _PSEUDO:
                major, _, minor = fields[2].partition(b":")
                found.add(os.makedev(int(major), int(minor)))
    return frozenset(found)
