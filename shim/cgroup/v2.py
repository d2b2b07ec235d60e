"""A control group of version 2: one directory in the one hierarchy.

Source: Linux Documentation/admin-guide/cgroup-v2.rst; containerd/cgroups cgroup2.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from google.protobuf.any_pb2 import Any as AnyMessage

from shim import log
from shim.cgroup import files
from shim.cgroup.metrics import HUGETLB, V2_FILES, v2_metrics
from shim.errors import NotFoundError


@dataclass(frozen=True, slots=True)
class CgroupV2:
    """``directory`` is the group's directory, ``mount`` the hierarchy's mount point."""

    directory: str
    mount: str = "/sys/fs/cgroup"

    def exists(self) -> bool:
        """Whether the group exists."""
        return Path(self.directory).is_dir()

    def pids(self) -> list[int]:
        """Return every process of the group and the groups below; none if it was removed."""
        return files.subtree_pids(self.directory)

    def metrics(self) -> AnyMessage:
        """Return io.containerd.cgroups.v2.Metrics.

        :raises NotFoundError: the group was removed.
        """
        names = [n for n in files.list_names(self.directory) if HUGETLB.fullmatch(n)]
        metrics = v2_metrics(files.read_files(self.directory, [*V2_FILES, *names]))
        if not self.exists():
            raise NotFoundError(f"cannot read the metrics of {self.directory}: cgroup not found")
        return AnyMessage(type_url=metrics.DESCRIPTOR.full_name, value=metrics.SerializeToString())

    def signal_all(self, number: int) -> None:
        """Signal every process of the group and the groups below.

        :raises UnsupportedError: the shim itself is one of them.
        """
        files.check_foreign(self.pids(), self.directory)
        if number == signal.SIGKILL:
            try:
                files.write_file(f"{self.directory}/cgroup.kill", "1")
            except OSError as exc:  # Linux before 5.14, or the group was removed
                log.debug("cannot write cgroup.kill", cgroup=self.directory, error=exc)
            else:
                return
        files.signal_each(self.pids, number)

    def has_room(self, count: int) -> bool:
        """Whether the pids limits allow ``count`` more processes."""
        return files.has_room(self.directory, count)

    def add(self, pid: int) -> None:
        """Move ``pid`` into the group; create it if it is missing.

        :raises NotFoundError: there is no such process.
        """
        files.join_group(self.directory, pid)


def enable_controllers(cgroup: CgroupV2) -> None:
    """Enable every controller for ``cgroup``, from the root down, as far as permitted.

    A failure is normal in a user namespace, and where a parent has processes.  It costs
    metrics and limits and does not fail the container.
    Source: containerd/cgroups cgroup2/manager.go ToggleControllers.
    """
    mount = PurePosixPath(cgroup.mount)
    for parent in reversed(PurePosixPath(cgroup.directory).parents):
        if not parent.is_relative_to(mount):
            continue
        control = f"{parent}/cgroup.subtree_control"
        there = set((files.read_file(control) or "").split())
        offered = (files.read_file(f"{parent}/cgroup.controllers") or "").split()
        # One at a time: the kernel rejects a line with several as a whole.
        for controller in (one for one in offered if one not in there):
            try:
                files.write_file(control, f"+{controller}")
            except OSError as exc:
                log.debug("controller not enabled", controller=controller, error=exc)
