"""The parts of one container that the operations on it share.

Create, start, exec, delete and restore have a module each.  Each module takes the
:class:`ContainerParts` of a container, and changes the state in them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shim import log
from shim.container.bundle import Bundle
from shim.container.cgroup import ContainerCgroup
from shim.container.cleanup_records import CleanupRecords
from shim.container.disk import is_responsive
from shim.container.process import Process
from shim.container.requests import stdio_of
from shim.container.saved import SavedState
from shim.container.task_events import TaskEvents
from shim.errors import InvalidError
from shim.hostfile import Output, read_output
from shim.runc.command import Checkpoint
from shim.runc.driver import Runc, environ_in
from shim.stdio.opening import open_stdio
from shim.stdio.spool import Overflow

if TYPE_CHECKING:
    from shim.api.task_pb2 import CreateTaskRequest
    from shim.container.bundle import Config
    from shim.container.cleanup_records import CleanupRecord
    from shim.container.host import Host
    from shim.container.options import Options
    from shim.events.source import Source
    from shim.recovery.slot import StateSlot


@dataclass(frozen=True, slots=True)
class ContainerParts:
    """The container ``id``: its files, its processes, and the records of its state.

    ``execs`` maps exec ids to execs, without the init process.  ``source`` is the queue of
    the container's events.  ``cleanup_records`` are for the ``delete`` that runs after the
    daemon's death, ``saved`` is for the daemon's replacement.  ``image`` is the checkpoint
    from which Start restores the container; its ``image_path`` is empty without one.
    ``mounted`` is whether the shim mounts the rootfs.  ``first`` is the bundle of
    ``cleanup_records``; None for the container of that bundle, which needs no record.
    """

    id: str
    bundle: Bundle
    config: Config
    options: Options
    host: Host
    init: Process
    execs: dict[str, Process]
    runc: Runc
    source: Source
    saved: SavedState
    events: TaskEvents
    group: ContainerCgroup
    cleanup_records: CleanupRecords
    overflow: Overflow | None
    image: Checkpoint
    mounted: bool
    first: Bundle | None

    @classmethod
    def of(
        cls,
        request: CreateTaskRequest,
        bundle: Bundle,
        config: Config,
        options: Options,
        host: Host,
        slot: StateSlot | None = None,
    ) -> ContainerParts:
        """Make the parts of the container that ``request`` creates.

        ``slot`` is that of a killed daemon, whose container is restored.

        :raises InvalidError: the policy for unread output is not valid.
        """
        path = str(bundle.path)
        output = _output_of(config, is_restored=slot is not None)
        init, execs = Process("", stdio_of(request)), dict[str, Process]()
        source = host.publisher.open_source(bundle.journal)
        saved = SavedState(request, config, options, init, execs, host.deposit, slot)
        events = TaskEvents(request.id, source, saved)
        runc = Runc(
            options.runtime(host.namespace),
            host.reaper,
            host.limit,
            environ_in(path, host.bundle),
            directory=path,
        )
        host.reservations.join_pod(request.id, config.group)
        first = host.reservations.first_bundle(request.id, path, config.group)
        group = saved.group = ContainerCgroup(request.id, bundle, events)
        return cls(
            id=request.id,
            bundle=bundle,
            config=config,
            options=options,
            host=host,
            init=init,
            execs=execs,
            runc=runc,
            source=source,
            saved=saved,
            events=events,
            group=group,
            cleanup_records=CleanupRecords(first),
            overflow=Overflow.of(output, path),
            image=Checkpoint(
                image_path=request.checkpoint,
                work_path=options.criu_work_path or str(bundle.work),
                parent_path=request.parent_checkpoint,
            ),
            mounted=bool(request.rootfs),
            first=Bundle.known(first) if first not in {"", path} else None,
        )

    async def write_cleanup_record(self, record: CleanupRecord) -> None:
        """Write ``record``, unless the disk of its bundle hangs: then a warning is logged."""
        what = "write the cleanup record"
        if self.first is not None and await is_responsive(self.first, self.id, what):
            self.cleanup_records.write(record)

    async def remove_cleanup_record(self) -> None:
        """Remove the record, unless the disk of its bundle hangs: then a warning is logged."""
        what = "remove the cleanup record"
        if self.first is not None and await is_responsive(self.first, self.id, what):
            self.cleanup_records.remove(self.id)

    async def open_stdio(self, process: Process) -> None:
        """Open the streams of ``process``; the caller saves the state then."""
        process.set_stdio(
            await open_stdio(
                process.spec,
                nursery=self.host.nursery,
                reaper=self.host.reaper,
                container_id=process.id or self.id,
                namespace=self.host.namespace,
                uid=self.options.io_uid,
                gid=self.options.io_gid,
                overflow=self.overflow,
                directory=str(self.bundle.path),
                deposit=self.host.deposit,
                prefix=self.saved.stdio_prefix(process.id),
            )
        )


def _output_of(config: Config, *, is_restored: bool) -> Output:
    try:
        return read_output(os.environ).annotated(config.annotations)
    except InvalidError as exc:
        if not is_restored:
            raise
        # The host's file was changed since.
        log.warning("further execs have the default for unread output", error=exc)
        return Output()
