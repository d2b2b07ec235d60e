"""Removes the cgroup that a killed create command has left.

A runtime makes the cgroup first, then runs hooks, and writes its state last.  If it is killed
before that, its ``delete`` finds no state and removes nothing.

Source: runc libcontainer/process_linux.go, initProcess.start().
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from shim import log
from shim.cgroup.files import subtree, subtree_pids
from shim.cgroup.find import cgroup_at, cgroup_of, existing_directories, hybrid_directory
from shim.cgroup.v1 import CgroupV1
from shim.container.orphaned import cgroup_names, container_part, own_part
from shim.errors import ShimError
from shim.linux import membership

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from shim.cgroup.find import Cgroup

# Seconds for killed processes to leave their cgroup, and between two checks.
_EXIT = 2.0
_PAUSE = 0.01


class FailedCreate:
    """The cgroup that the runtime of the container ``id_`` may have made.

    ``cgroups_path`` is config.json's ``cgroupsPath``; None if it has no ``linux`` section.
    Constructed before the runtime runs, or with the ``existing`` directories of the path then.
    """

    def __init__(
        self, id_: str, cgroups_path: str | None, existing: Collection[str] | None = None
    ) -> None:
        self._id = id_
        if cgroups_path is not None and "\0" in cgroups_path:
            cgroups_path = None  # the runtime rejects it
        self._path = cgroups_path
        self._directories: dict[str, None] = {}
        # Another container may use the same cgroupsPath.  Only an absolute path can be
        # looked up before the runtime runs: the runtime begins any other at its own cgroup.
        self.existing: frozenset[str] = frozenset(existing or ())
        if existing is None and cgroups_path is not None and cgroups_path.startswith("/"):
            self.existing = existing_directories(cgroups_path)

    def find(self, pids: Iterable[int]) -> None:
        """Find the cgroup by ``pids``: the runtime and its descendants, before they are killed."""
        path = self._path
        if path is None:
            return
        names = cgroup_names(path, self._id)
        for pid in pids:
            try:
                self._add(container_part(cgroup_of(pid), names))
                self._add_hybrid(own_part(membership.read(pid).get("", "/"), names))
            except (ShimError, OSError):
                continue  # it has exited, or is in the daemon's own cgroup
        if path.startswith("/"):
            with suppress(ShimError, OSError):  # this host has no cgroups
                self._add(cgroup_at(path))
                self._add_hybrid(path)

    def _add(self, cgroup: Cgroup) -> None:
        found = cgroup.directories.values() if isinstance(cgroup, CgroupV1) else [cgroup.directory]
        self._directories |= dict.fromkeys(found)

    def _add_hybrid(self, path: str) -> None:
        if directory := path and hybrid_directory(path):
            self._directories[directory] = None

    async def remove(self, kill_orphan: Callable[[int], None]) -> None:
        """Remove the cgroup, and kill the orphans in it by ``kill_orphan``.

        A cgroup that existed before the create stays, with its processes.  Takes two
        seconds at most, and logs a warning if the cgroup is still there.
        """
        self.find(())  # without pids: another process may have killed the runtime
        with trio.move_on_after(_EXIT):
            for directory in self._directories:
                try:
                    await self._remove(directory, kill_orphan)
                except OSError as exc:  # for example, a path that no cgroup can have
                    log.debug("cannot remove a cgroup", id=self._id, error=exc)
            return
        log.warning("cannot remove the cgroup of a failed create: it is in use", id=self._id)

    async def _remove(self, directory: str, kill_orphan: Callable[[int], None]) -> None:
        if os.getpid() in subtree_pids(directory):
            return  # the daemon's own, whose path contains the container's
        if directory in self.existing:
            return
        while (pids := subtree_pids(directory)) or not _removed(directory):
            for pid in pids:
                kill_orphan(pid)
            await trio.sleep(_PAUSE)


def _removed(directory: str) -> bool:
    """Remove ``directory`` and the groups below it; return False if a process is in one."""
    for group in reversed(list(subtree(directory))):
        try:
            os.rmdir(group)  # noqa: PTH106 - a plain string
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            return False
    return True
