"""The cgroup of a container: its processes, its metrics, and its OOM kills."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from shim import log
from shim.cgroup.find import cgroup_of
from shim.cgroup.v1 import CgroupV1
from shim.cgroup.v2 import CgroupV2, enable_controllers
from shim.container.oom import OomReporter
from shim.container.snapshot import Fixed
from shim.errors import NotFoundError, ShimError

if TYPE_CHECKING:
    import trio
    from google.protobuf.any_pb2 import Any as AnyMessage

    from shim.cgroup.find import Cgroup
    from shim.cgroup.oom import OomCount
    from shim.child import Child
    from shim.container.bundle import Bundle
    from shim.container.task_events import TaskEvents


class ContainerCgroup:
    """``cgroup`` is None until :meth:`find`, and for a container without its own cgroup."""

    def __init__(self, id_: str, bundle: Bundle, events: TaskEvents) -> None:
        self.cgroup: Cgroup | None = None
        self._id = id_
        self._bundle = bundle
        self._events = events
        self._oom: OomReporter | None = None
        self._directories: Fixed | None = None  # those of ``cgroup``, once they are needed

    def find(self, child: Child) -> None:
        """Find the cgroup of the init process ``child``; log an error of it."""
        try:
            cgroup = cgroup_of(child.pid)
        except (ShimError, OSError) as exc:
            log.debug("cannot find the cgroup of the container", id=self._id, error=exc)
            return
        # gVisor without cgroups runs in the daemon's own cgroup.  That must not be
        # measured as the container's, nor be killed as a whole.
        if os.getpid() in cgroup.pids():
            return
        self.cgroup = cgroup
        if isinstance(cgroup, CgroupV2):
            enable_controllers(cgroup)

    async def watch_oom(self, nursery: trio.Nursery, earlier: OomCount | None = None) -> None:
        """Publish an OOM event for each OOM kill from now on, or since ``earlier``."""
        if self.cgroup is not None:
            self._oom = OomReporter(self.cgroup, self._bundle, self._events, earlier)
            await nursery.start(self._oom.run)

    @property
    def directories(self) -> dict[str, str]:
        """The directories of the cgroup by controller, that of version 2 by ``""``."""
        if self._directories is None:
            if isinstance(self.cgroup, CgroupV1):
                self._directories = Fixed(self.cgroup.directories)
            elif isinstance(self.cgroup, CgroupV2):
                self._directories = Fixed({"": self.cgroup.directory, "mount": self.cgroup.mount})
            else:
                return {}
        return self._directories

    @property
    def oom_count(self) -> OomCount | None:
        """The OOM kills so far; None while they are not watched."""
        return self._oom.count if self._oom is not None else None

    def restore(self, directories: dict[str, str]) -> None:
        """Set the cgroup of which these are the :attr:`directories`."""
        if "" in directories:
            self.cgroup = CgroupV2(directories[""], directories["mount"])
        elif directories:
            self.cgroup = CgroupV1(directories)

    def report_oom(self) -> None:
        """Publish the OOM kills that have happened."""
        if self._oom is not None:
            self._oom.report()

    def stop_oom(self) -> None:
        """Stop to watch for OOM kills."""
        oom, self._oom = self._oom, None
        if oom is not None:
            oom.stop()

    def forget(self) -> None:
        """Drop the cgroup: the create is undone."""
        self.stop_oom()
        self.cgroup = self._directories = None

    def pids(self) -> list[int]:
        """Return the pids of the processes in the cgroup."""
        return self.cgroup.pids() if self.cgroup is not None else []

    def metrics(self) -> AnyMessage:
        """Return the metrics of the cgroup.

        :raises NotFoundError: there is no cgroup, or it was removed.
        """
        if self.cgroup is None:
            raise NotFoundError(f"container {self._id} has no cgroup to measure")
        return self.cgroup.metrics()
