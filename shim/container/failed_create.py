"""The cgroup of a container whose create was killed half way.

A runtime makes it before it writes its own state, and runs hooks in between: its
``delete`` knows of no container then, and removes nothing.

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
    from collections.abc import Iterable

    from shim.cgroup.find import Cgroup
    from shim.reaper import Reaper

# Seconds for killed processes to leave their cgroup.
_EXIT = 2.0
_PAUSE = 0.01


class FailedCreate:
    """What the runtime of the container ``id_`` made before it was killed."""

    def __init__(self, id_: str, cgroups_path: str | None) -> None:
        self._id = id_
        if cgroups_path is not None and "\0" in cgroups_path:
            cgroups_path = None  # it names no cgroup, and the runtime refuses it
        self._path = cgroups_path
        self._directories: dict[str, None] = {}
        # Another container may use the same cgroupsPath.  Only an absolute path can be
        # looked up before the runtime runs: the runtime begins any other at its own cgroup.
        self._existing: frozenset[str] = frozenset()
        if cgroups_path is not None and cgroups_path.startswith("/"):
            self._existing = existing_directories(cgroups_path)

    def find(self, pids: Iterable[int]) -> None:
        """Find the cgroup by ``pids``, the runtime and its descendants, about to be killed."""
        path = self._path
        if path is None:
            return
        names = cgroup_names(path, self._id)
        for pid in pids:
            try:
                self._add(container_part(cgroup_of(pid), names))
                self._add_hybrid(own_part(membership.read(pid).get("", "/"), names))
            except (ShimError, OSError):
                continue  # it has ended, or is in the shim's own cgroup
        if path.startswith("/"):  # from the root; any other begins at the runtime's own group
            with suppress(ShimError, OSError):  # there are no cgroups here
                self._add(cgroup_at(path))
                self._add_hybrid(path)

    def _add(self, cgroup: Cgroup) -> None:
        found = cgroup.directories.values() if isinstance(cgroup, CgroupV1) else [cgroup.directory]
        self._directories |= dict.fromkeys(found)

    def _add_hybrid(self, path: str) -> None:
        if directory := path and hybrid_directory(path):
            self._directories[directory] = None

    async def remove(self, reaper: Reaper) -> None:
        """Remove the cgroup, and kill the orphans in it that are ours.

        A cgroup that existed before the create stays, with its processes.
        """
        self.find(())  # a runtime that another process killed
        with trio.move_on_after(_EXIT):
            for directory in self._directories:
                try:
                    await self._remove(directory, reaper)
                except OSError as exc:  # no group can have this path, for example
                    log.debug("no cgroup to remove", id=self._id, error=exc)
            return
        log.warning("a cgroup of a failed creation is left", id=self._id)

    async def _remove(self, directory: str, reaper: Reaper) -> None:
        if os.getpid() in subtree_pids(directory):
            return  # the shim's own, whose name contains the container's
        if directory in self._existing:
            return
        while (pids := subtree_pids(directory)) or not _removed(directory):
            for pid in pids:
                reaper.kill_orphan(pid)
            await trio.sleep(_PAUSE)


def _removed(directory: str) -> bool:
    """Remove ``directory`` and the groups below it; False while a process is in one."""
    for group in reversed(list(subtree(directory))):
        try:
            os.rmdir(group)  # noqa: PTH106 - a plain string
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            return False
    return True
