"""Publishes an OOM event each time the number of OOM kills in a container grows.

Source: containerd-shim-runc-v2, and CRI-O's internal/oci/runtime_vm.go for the file.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import trio

from shim import log
from shim.cgroup.oom import open_oom_watch
from shim.linux.modes import write_file

if TYPE_CHECKING:
    from shim.cgroup.find import Cgroup
    from shim.cgroup.oom import OomCount, OomWatch
    from shim.container.bundle import Bundle
    from shim.container.task_events import TaskEvents


class OomReporter:
    """Watches one container's cgroup from :meth:`run` to :meth:`stop`."""

    def __init__(
        self,
        cgroup: Cgroup,
        bundle: Bundle,
        events: TaskEvents,
        earlier: OomCount | None = None,
    ) -> None:
        self._cgroup = cgroup
        self._bundle = bundle
        self._events = events
        self._watch: OomWatch | None = None
        self._earlier = earlier
        self._published = earlier.kills if earlier is not None else 0
        self._scope = trio.CancelScope()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Publish as kills happen; ``started`` is called once no kill can be missed."""
        with self._scope:
            try:
                async with open_oom_watch(self._cgroup, self._earlier) as self._watch:
                    task_status.started()
                    while True:
                        await self._watch.wait_kill()
                        self.report()
            except Exception as exc:
                # The container runs on without OOM events: an error must not end the
                # daemon, which other containers of the pod share.
                log.crash("cannot watch for OOM kills", exc, id=self._events.id)
                if self._watch is None:
                    task_status.started()

    @property
    def count(self) -> OomCount | None:
        """The counters at the last published event; None before :meth:`run` has read them."""
        return self._watch.state if self._watch is not None else self._earlier

    def report(self) -> None:
        """Publish an event if the number of kills has grown; never raises."""
        try:
            count = self._watch.count() if self._watch is not None else 0
        except OSError as exc:
            log.warning("cannot read the number of OOM kills", id=self._events.id, error=exc)
            return
        if count <= self._published:
            return
        self._published = count
        # CRI-O checks for this file when a container exits with an error.
        with contextlib.suppress(OSError):
            write_file(self._bundle.path / "oom", "", 0o644)
        self._events.oom()

    def stop(self) -> None:
        """End :meth:`run`."""
        self._scope.cancel()
