"""A container: its init process, its execs, and the operations of the Task API on them.

No lock that another request needs is held during a runtime command: State, Pids,
Stats, Wait and signals never wait for a command.

Source: containerd-shim-runc-v2 runc/container.go and process/*.go.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from shim import jsontext
from shim.api import task_pb2
from shim.container.bundle import Bundle, Config, checked_id
from shim.container.checkpoint import LIMIT as CHECKPOINT_LIMIT
from shim.container.checkpoint import checkpoint
from shim.container.deletion import Deletion
from shim.container.disk import wait_responsive
from shim.container.execs import Execs
from shim.container.exits import Exits
from shim.container.freezer import SIGKILL, Freezer
from shim.container.init_creation import InitCreation
from shim.container.lifecycle import Op, State
from shim.container.logfifo import LogFifo
from shim.container.options import Options
from shim.container.parts import ContainerParts
from shim.container.requests import json_of, mount_of
from shim.container.restoring import Restoring
from shim.container.rootfs import mount_rootfs, unmount_rootfs
from shim.errors import (
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from shim.linux.modes import make_directory, write_file

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any as AnyMessage

    from shim.container.host import Host
    from shim.container.process import Process
    from shim.container.snapshot import ContainerSnapshot
    from shim.exit import Exit
    from shim.recovery.inherited import Inherited
    from shim.recovery.slot import StateSlot
    from shim.ttrpc.services import Stream

# The signals that managers stop a container with: SIGKILL and SIGTERM.
_ENDING = (9, 15)
# Those that a replacement sends again: a second one has no further effect.
_REPEATED = (*_ENDING, 0)


class Container:
    """Created by :meth:`create`.  ``execs`` maps exec ids to execs, without the init process."""

    def __init__(
        self,
        request: task_pb2.CreateTaskRequest,
        bundle: Bundle,
        config: Config,
        options: Options,
        host: Host,
        slot: StateSlot | None = None,
    ) -> None:
        parts = ContainerParts.of(request, bundle, config, options, host, slot)
        self.id = request.id
        self.bundle = bundle
        self.init = parts.init
        self.execs = parts.execs
        self.saved = parts.saved
        self._parts = parts
        self._config = config
        self._options = options
        self._host = host
        self._runc = parts.runc
        self._events = parts.events
        self._group = parts.group
        self._log_fifo = LogFifo(self.id, str(bundle.path))
        self._creation = InitCreation(parts)
        self._freezer = Freezer(self.id, self.init, self._runc, self._events, self.saved)
        self._exits = Exits(parts)
        self._execs = Execs(parts, self._exits)
        self._deletion = Deletion(parts, self._creation)
        self._restoring = Restoring(parts, self._creation, self._freezer, self._exits)

    # -- create and restore ------------------------------------------------------

    @classmethod
    async def create(cls, request: task_pb2.CreateTaskRequest, host: Host) -> Container:
        """Mount the rootfs and create the container; its init process waits for :meth:`start`.

        If the request names a checkpoint, Start restores it, and no process runs before.

        :raises ShimError, OSError: the runtime, a mount, the stdio or the bundle
            failed; everything that was made is undone.
        """
        checked_id(request.id)
        bundle = Bundle.open(request.bundle)
        await wait_responsive(bundle)
        self = cls(request, bundle, bundle.config(), Options.decode(request.options), host)
        bundle.remove_exit_files()
        async with AsyncExitStack() as undo:
            undo.callback(self.close)
            self.saved.doing = "Create"
            self.saved.save()
            self._open_log()
            self._options.write(bundle.path / "options.json")
            write_file(bundle.path / "runtime", self._runc.runtime.binary)
            address = host.reservations.address_of(self._config.group) or host.address
            written = bundle.write_shim_files(address, self._parts.cleanup_records.bundle)
            undo.push_async_callback(self._creation.remove_files, written)
            if request.rootfs:
                make_directory(bundle.rootfs, 0o711, exist_ok=True)
                undo.push_async_callback(unmount_rootfs, str(bundle.rootfs))
                mounts = [mount_of(message) for message in request.rootfs]
                rootfs, directory = str(bundle.rootfs), str(bundle.path)
                await mount_rootfs(mounts, rootfs, host.reaper, directory=directory)
            undo.push_async_callback(self.init.dispose)
            await self._parts.open_stdio(self.init)
            if self._parts.image.image_path:
                self.saved.save()
            else:
                await self._creation.create()  # which saves the state
            undo.pop_all()
        self.saved.doing = ""
        self._events.created(request, self.init.pid)
        self._exits.follow_init()
        return self

    def _open_log(self) -> None:
        if self.bundle.path != Path(self._host.bundle):  # the daemon's fd 2 is that one's
            self._log_fifo.open()

    @classmethod
    async def restore(
        cls, snapshot: ContainerSnapshot, slot: StateSlot, inherited: Inherited, host: Host
    ) -> Container:
        """Continue the container of a killed daemon.

        Operations that were under way are completed or undone in the background; further
        ones wait for that.  A container whose Create was under way is only constructed:
        call :meth:`undo_create`.

        :raises Exception: the state is not valid, and no process is left that was followed.
        """
        assert snapshot.constants is not None
        request = task_pb2.CreateTaskRequest.FromString(snapshot.constants.request)
        self = cls(
            request,
            Bundle.known(request.bundle),
            Config(**snapshot.constants.config),
            Options(**snapshot.constants.options),
            host,
            slot,
        )
        self._open_log()
        try:
            await self._restoring.run(snapshot, inherited)
        except Exception:  # the container is lost
            self._restoring.kill()
            raise
        return self

    @classmethod
    def lost(cls, request: task_pb2.CreateTaskRequest, slot: StateSlot, host: Host) -> Container:
        """Return a container of a killed daemon whose state is not valid, as an exited one.

        :raises ShimError, OSError: its bundle is not valid, or was removed.
        """
        bundle = Bundle.open(request.bundle)
        options = Options.read(bundle.path / "options.json")
        self = cls(request, bundle, bundle.config(), options, host, slot)
        self._open_log()
        self._restoring.give_up()
        return self

    async def wait_settled(self) -> None:
        """Wait until the operations that were under way are completed or undone."""
        await self._restoring.settled.wait()

    async def undo_create(self) -> None:
        """Undo the interrupted Create of a restored container."""
        try:
            await self._restoring.undo_create()
            if self._parts.mounted:
                await unmount_rootfs(str(self.bundle.rootfs))
        finally:
            await self._creation.remove_files()
            self.close()

    def release_streams(self) -> None:
        """Close the streams that are kept for the init process of an interrupted call."""
        self._restoring.release_streams("")

    def close(self) -> None:
        """Forget the deleted container, and close its log and its journal."""
        self.saved.close()
        self._parts.source.close()
        self._log_fifo.close()

    # -- the Task API ------------------------------------------------------------

    @property
    def is_settled(self) -> bool:
        """Whether no operation is under way that changes the container or a process."""
        processes = (self.init, *self.execs.values())
        return not self.saved.doing and all(
            not process.doing and process.is_exit_kept for process in processes
        )

    def process(self, exec_id: str) -> Process:
        """Return the exec ``exec_id``, or the init process for "".

        :raises NotFoundError: there is no such exec.
        """
        if not exec_id:
            return self.init
        try:
            return self.execs[exec_id]
        except KeyError:
            raise NotFoundError(f"exec {exec_id} does not exist in {self.id}: not found") from None

    def state_of(self, process: Process) -> State:
        """Return the state to report: the execs of a paused container are paused, too."""
        paused = self.init.state is State.PAUSED and process.state is State.RUNNING
        return State.PAUSED if paused else process.state

    def add_exec(self, request: task_pb2.ExecProcessRequest, *, replayed: bool = False) -> None:
        """Add an exec; :meth:`start` runs it.  A ``replayed`` call may have added it already.

        :raises ShimError, MustWaitError: as :meth:`Execs.add`.
        """
        self._execs.add(request, replayed=replayed)

    async def start(self, exec_id: str, *, replayed: bool = False) -> int:
        """Start the init process or an exec; return its pid.

        A ``replayed`` call finds the process started if it had succeeded.

        :raises ShimError: the state does not allow it, or the runtime failed.
        :raises UnavailableError: the daemon was killed while it started the exec.
        """
        process = self.process(exec_id)
        async with process.busy:
            if replayed and process.state is not State.CREATED:
                return process.pid
            interrupted, process.doing = process.doing == "Start", ""
            if interrupted and replayed:
                self.saved.save()
                raise UnavailableError(
                    f"exec {exec_id} was interrupted: its shim was killed while it started "
                    "the process, which may have run; start another exec"
                )
            process.life.check(Op.START)
            if process is self.init:
                with self.saved.operation("Start", process):
                    await self._start_init()
            else:
                try:
                    await self._execs.start(process)
                finally:
                    self._restoring.release_streams(exec_id)
            return process.pid

    async def _start_init(self) -> None:
        if self._parts.image.image_path:
            await self._restoring.reopen_streams()
            await self._creation.restore(self._parts.image)
        else:
            # If the call is cancelled, the container still starts, and its state
            # must be RUNNING.  The limit of a runtime command bounds this.
            with trio.CancelScope(shield=True):
                await self._runc.run("start", self.id)
        self.init.life.apply(Op.START)
        self.init.doing = ""
        self._events.started(self.init.pid)
        if self._parts.image.image_path:
            self._exits.follow_init()

    async def delete(self, exec_id: str, *, replayed: bool = False) -> Exit:
        """Delete an exited container or exec; return its exit.

        Waits at most ten seconds until readers have read the output of the process.
        A ``replayed`` call may have deleted the exec already.

        :raises ShimError: the state does not allow it, or the runtime failed.
        """
        if replayed and exec_id in self.saved.deleted and exec_id not in self.execs:
            return self.saved.deleted[exec_id]
        exit_ = await self._deletion.delete(self.process(exec_id))
        self._restoring.release_streams(exec_id)
        return exit_

    async def kill(self, request: task_pb2.KillRequest, call: Stream[Any, Any]) -> None:
        """Send a signal to one process, or to all processes of the container.

        The signal of a call that had begun may have been sent already; only SIGTERM, SIGKILL
        and 0 are sent again.

        :raises NotFoundError: the process has exited.  Not raised if the manager
            treats it as a failure of its stop: see :attr:`Host.ended_is_killed`.
        :raises InvalidError: there is no such signal.
        :raises UnavailableError: the signal may have been sent by a killed daemon.
        """
        process, number = self.process(request.exec_id), request.signal
        if call.begun and number not in _REPEATED:  # a state of version 1 has begun calls of all
            raise UnavailableError(
                f"signal {number} may have been sent: the shim was killed meanwhile; send it "
                "again if it must arrive"
            )
        if number == SIGKILL and process.state is State.STOPPED:
            # The manager is about to delete it.
            await process.wait_unread()
        try:
            process.life.check(Op.KILL)
            if number > 64:
                raise InvalidError(f"there is no signal {number}")
            if number not in _REPEATED:
                call.begin()
            await self._kill(process, number, all_=request.all)
        except NotFoundError:
            if not ((self._host.ended_is_killed or call.replayed) and number in _ENDING):
                raise

    async def _kill(self, process: Process, number: int, *, all_: bool) -> None:
        all_ = all_ and process is self.init
        held = self._freezer.needs_runtime(number, self._group.cgroup) or (
            all_ and self._group.cgroup is None
        )
        if held and process is self.init:
            await self._freezer.kill(number, all_=all_)
        elif all_ and self._group.cgroup is not None:
            self._group.cgroup.signal_all(number)
        else:
            process.signal(number)

    async def pause(self, *, replayed: bool = False) -> None:
        """Freeze the container with its execs."""
        await self._freezer.pause(replayed=replayed)

    async def resume(self, *, replayed: bool = False) -> None:
        """Thaw the container with its execs."""
        await self._freezer.resume(replayed=replayed)

    async def update(self, resources: AnyMessage) -> None:
        """Change the limits of the container.

        :raises InvalidError: ``resources`` is not the JSON of LinuxResources.
        """
        self.init.life.check(Op.UPDATE)
        data = jsontext.dumps(json_of(resources, "LinuxResources"))
        await self._runc.run("update", "--resources", "-", self.id, stdin=data)

    async def checkpoint(
        self, request: task_pb2.CheckpointTaskRequest, call: Stream[Any, Any]
    ) -> None:
        """Write a checkpoint to ``request.path``; the option ``exit`` ends the container.

        :raises UnavailableError: the daemon was killed while the runtime wrote the checkpoint;
            the runtime has ended.
        """
        if call.begun:
            await self._restoring.wait_commands(CHECKPOINT_LIMIT)
            raise UnavailableError(
                "the checkpoint was interrupted: the shim was killed meanwhile; repeat it"
            )
        self.init.life.check(Op.CHECKPOINT)
        image = await checkpoint(self._runc, self.id, self.bundle, request, call.begin)
        self._events.checkpointed(image)

    def close_stdin(self, exec_id: str) -> None:
        """Close the shim's end of the stdin of a process."""
        self.process(exec_id).close_stdin()
        self.saved.save()

    def pids(self) -> list[int]:
        """Return the pids in the container, or that of an exited init process.

        The list is never empty once there was an init process.  A containerd that restarts
        assumes that a shim without processes never created its container, and deletes
        the container before any client has read the exit status.
        """
        return self._group.pids() or ([self.init.pid] if self.init.pid else [])

    def stats(self) -> AnyMessage:
        """Return the metrics of the cgroup.

        :raises NotFoundError: there is no cgroup, or it was removed.
        """
        return self._group.metrics()
