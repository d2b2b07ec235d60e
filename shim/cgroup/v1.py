"""A control group of version 1: one directory in each hierarchy.

Source: Linux Documentation/admin-guide/cgroup-v1/; containerd/cgroups cgroup1.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from google.protobuf.any_pb2 import Any as AnyMessage

from shim.cgroup import files
from shim.cgroup.metrics import HUGETLB, V1_FILES, v1_metrics
from shim.errors import NotFoundError


@dataclass(frozen=True, slots=True)
class CgroupV1:
    """``directories`` maps controllers (including ``name=systemd``) to directories."""

    directories: dict[str, str]

    def exists(self) -> bool:
        """Whether the group exists in at least one hierarchy."""
        return any(os.path.isdir(one) for one in self._distinct())  # noqa: PTH112 - plain strings

    def pids(self) -> list[int]:
        """Return every process of the group and the groups below; none if it was removed."""
        return files.subtree_pids(self._main()) if self.directories else []

    def metrics(self) -> AnyMessage:
        """Return io.containerd.cgroups.v1.Metrics.

        :raises NotFoundError: the group was removed.
        """
        found: dict[str, str] = {}
        for controller, directory in self.directories.items():
            names = V1_FILES.get(controller, ())
            if controller == "hugetlb":
                names = tuple(n for n in files.list_names(directory) if HUGETLB.fullmatch(n))
            found |= files.read_files(directory, names)
        metrics = v1_metrics(found, files.read_file("/proc/partitions") or "")
        if not self.exists():
            raise NotFoundError(f"cannot read the metrics of {self._main()}: cgroup not found")
        return AnyMessage(type_url=metrics.DESCRIPTOR.full_name, value=metrics.SerializeToString())

    def signal_all(self, number: int) -> None:
        """Signal every process of the group and the groups below.

        :raises UnsupportedError: the shim itself is one of them.
        """
        files.check_foreign(self.pids(), self._main())
        files.signal_each(self.pids, number)

    def is_frozen(self) -> bool:
        """Whether a freezer has the group frozen, so that SIGKILL has no effect until a thaw.

        Only version 1 delays SIGKILL.  False if the state cannot be read.
        """
        directory = self.directories.get("freezer")
        try:
            state = files.read_file(f"{directory}/freezer.state") if directory else None
        except OSError:  # such as EMFILE; the caller's signal needs no fd
            return False
        return (state or "").strip() in ("FREEZING", "FROZEN")

    def has_room(self, count: int) -> bool:
        """Whether the pids limits allow ``count`` more processes."""
        directory = self.directories.get("pids")
        return directory is None or files.has_room(directory, count)

    def add(self, pid: int) -> None:
        """Move ``pid`` into the group in every hierarchy; create missing groups.

        :raises NotFoundError: there is no such process.
        """
        for directory in self._distinct():
            files.join_group(directory, pid)

    def _distinct(self) -> list[str]:
        # cpu and cpuacct are often two names of one hierarchy.
        return list(dict.fromkeys(self.directories.values()))

    def _main(self) -> str:
        # As "runc ps", which containerd's shim calls, reads the devices hierarchy.
        default = next(iter(self.directories.values()), "")
        return self.directories.get("devices", default)
