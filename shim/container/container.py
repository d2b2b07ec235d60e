"""A container: its init, its execs, and everything a manager may ask of it.

Nothing here holds a lock across a runtime command that another request could
need: State, Pids, Stats, Wait and signals never wait for a command.

Source: containerd-shim-runc-v2 runc/container.go and process/*.go.
"""

from __future__ import annotations

import contextlib
import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from shim import jsontext, log
from shim.cgroup.find import cgroup_of
from shim.cgroup.v2 import CgroupV2, enable_controllers
from shim.container.bundle import Bundle, checked_id
from shim.container.checkpoint import checkpoint
from shim.container.cleanup_records import CleanupRecord, cgroup_names_of
from shim.container.create import create_exec, create_process
from shim.container.failed_create import FailedCreate
from shim.container.freezer import SIGKILL, Freezer
from shim.container.lifecycle import Op, State
from shim.container.oom import OomReporter
from shim.container.options import Options
from shim.container.process import NEVER_STARTED, Process
from shim.container.requests import json_of, mount_of, process_of, stdio_of
from shim.container.rootfs import mount_rootfs, unmount_rootfs
from shim.container.task_events import TaskEvents
from shim.errors import ExistsError, InvalidError, NotFoundError, ShimError, WrongStateError
from shim.hostfile import read_output
from shim.linux.modes import make_directory, write_file
from shim.runc.command import Checkpoint, Creation, create_args, exec_args, restore_args
from shim.runc.driver import ForeignContainerError, Runc
from shim.stdio.opening import open_stdio
from shim.stdio.spool import Overflow

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any as AnyMessage

    from shim.api import task_pb2
    from shim.cgroup.find import Cgroup
    from shim.container.bundle import Config
    from shim.container.host import Host
    from shim.reaper import Child, Exit

# Seconds to undo a creation that failed; then something is left, and we say so.
UNDO = 10.0
# Seconds the exits of execs may take to follow the one of their init.
EXECS_EXIT = 10.0


# The signals that ask for an end: SIGKILL and SIGTERM.
_ENDING = (9, 15)


class Container:
    """Made by :meth:`create`.  ``execs`` are by exec id, and without the init."""

    def __init__(
        self,
        request: task_pb2.CreateTaskRequest,
        bundle: Bundle,
        config: Config,
        options: Options,
        host: Host,
    ) -> None:
        self.id = request.id
        self.bundle = bundle
        self.execs: dict[str, Process] = {}
        self.init = Process("", stdio_of(request))
        self._config = config
        self._options = options
        self._host = host
        self._events = TaskEvents(request.id, host.publisher)
        self._runc = Runc(
            options.runtime(host.namespace),
            host.reaper,
            host.limit,
            directory=str(bundle.path),
        )
        self._mounted = bool(request.rootfs)
        output = read_output(os.environ).annotated(config.annotations)
        self._overflow = Overflow.of(output, str(bundle.path))
        self._image = Checkpoint(
            image_path=request.checkpoint,
            work_path=options.criu_work_path or str(bundle.work),
            parent_path=request.parent_checkpoint,
        )
        self._cgroup: Cgroup | None = None
        self._oom: OomReporter | None = None
        self._freezer = Freezer(self.id, self.init, self._runc, self._events)
        self._ending = False

    # -- coming to life ----------------------------------------------------------

    @classmethod
    async def create(cls, request: task_pb2.CreateTaskRequest, host: Host) -> Container:
        """Mount the rootfs and create the container; its init waits for :meth:`start`.

        With a checkpoint in the request nothing runs before Start restores it.

        :raises ShimError, OSError: as the runtime, the mounts, the stdio or the
            bundle had it; nothing is left then.
        """
        checked_id(request.id)
        bundle = Bundle.open(request.bundle)
        self = cls(request, bundle, bundle.config(), Options.decode(request.options), host)
        bundle.remove_exit_files()
        async with AsyncExitStack() as undo:
            self._options.write(bundle.path / "options.json")
            write_file(bundle.path / "runtime", self._runc.runtime.binary)
            undo.callback(
                bundle.remove_files,
                bundle.write_shim_files(host.address, host.cleanup_records.bundle),
            )
            undo.callback(host.cleanup_records.remove, self.id)
            if request.rootfs:
                make_directory(bundle.rootfs, 0o711, exist_ok=True)
                undo.push_async_callback(unmount_rootfs, str(bundle.rootfs))
                mounts = [mount_of(message) for message in request.rootfs]
                rootfs, directory = str(bundle.rootfs), str(bundle.path)
                await mount_rootfs(mounts, rootfs, host.reaper, directory=directory)
            undo.push_async_callback(self.init.dispose)
            await self._open_stdio(self.init)
            if not self._image.image_path:
                await self._create_init()
            undo.pop_all()
        self._events.created(request, self.init.pid)
        self._follow_init()
        return self

    async def _open_stdio(self, process: Process) -> None:
        process.set_stdio(
            await open_stdio(
                process.spec,
                nursery=self._host.nursery,
                reaper=self._host.reaper,
                container_id=process.id or self.id,
                namespace=self._host.namespace,
                uid=self._options.io_uid,
                gid=self._options.io_gid,
                overflow=self._overflow,
                directory=str(self.bundle.path),
            )
        )

    async def _create_init(self) -> None:
        args = create_args(
            self.id,
            str(self.bundle.path),
            Creation(self.bundle.pid_file(), self.init.console_socket),
            no_pivot=self._options.no_pivot_root,
            no_new_keyring=self._options.no_new_keyring,
        )
        await self._run_create("create", args)

    async def _restore_init(self) -> None:
        args = restore_args(
            self.id,
            str(self.bundle.path),
            Creation(self.bundle.pid_file(), self.init.console_socket),
            self._image,
            no_pivot=self._options.no_pivot_root,
        )
        await self._run_create("restore", args)

    async def _run_create(self, verb: str, args: list[str]) -> None:
        # A container of this id that is not ours must survive our failure.
        state = self._runtime_state
        if state.exists():
            raise ExistsError(f"the runtime already has a container {self.id}, see {state}")
        failed_create = FailedCreate(self.id, self._config.cgroups_path)
        self._write_cleanup_record()
        try:
            child = await create_process(
                self._runc, self.bundle, self.init, verb, args, failed_create.find
            )
            self._find_cgroup(child)
            self._write_cleanup_record()
            if self._cgroup is not None:
                self._oom = OomReporter(self._cgroup, self.bundle, self._events)
                await self._host.nursery.start(self._oom.run)
            # A caller whose connection has ended by now is not answered: undo.  The end
            # is read in the first of these turns of the scheduler, at the latest.
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
        except BaseException:
            await self._undo_creation(failed_create)
            raise

    @property
    def _runtime_state(self) -> Path:
        return Path(self._runc.runtime.root) / self.id

    async def _undo_creation(self, failed_create: FailedCreate) -> None:
        with trio.move_on_after(UNDO, shield=True) as scope:
            if self.init.child is not None:  # whether the runtime can delete it or not
                with contextlib.suppress(NotFoundError):
                    self.init.child.signal(SIGKILL)
            try:
                await self._runc.run("delete", "--force", self.id)
            except ForeignContainerError:
                pass  # the runtime refused ours for it, so the cgroup is that container's
            except (ShimError, OSError) as exc:
                log.debug("nothing to undo", id=self.id, error=exc)
                await failed_create.remove(self._host.reaper)
            else:
                await failed_create.remove(self._host.reaper)
        if scope.cancelled_caught:
            log.error("a failed creation could not be undone", id=self.id)
        self._stop_oom()
        self._cgroup = None
        self.init.child, self.init.pid = None, 0
        self.bundle.remove_pid_files()

    def _stop_oom(self) -> None:
        oom, self._oom = self._oom, None
        if oom is not None:
            oom.stop()

    def _find_cgroup(self, child: Child) -> None:
        try:
            cgroup = cgroup_of(child.pid)
        except (ShimError, OSError) as exc:
            log.debug("no cgroup", id=self.id, error=exc)
            return
        # A cgroup that is ours too (gVisor run without any) is not the
        # container's to be measured by, let alone to be killed as a whole.
        if os.getpid() in cgroup.pids():
            return
        self._cgroup = cgroup
        if isinstance(cgroup, CgroupV2):
            enable_controllers(cgroup)

    def _write_cleanup_record(self) -> None:
        """Write down what ends this container if the shim cannot."""
        record = CleanupRecord(
            self.id,
            str(self.bundle.path),
            self._runc.runtime,
            self.init.pid,
            cgroup_names_of(self._cgroup),
            self._config.own_pid_namespace,
        )
        self._host.cleanup_records.write(record)

    # -- execs -------------------------------------------------------------------

    def add_exec(self, request: task_pb2.ExecProcessRequest) -> None:
        """Reserve an exec; :meth:`start` runs it.

        :raises ExistsError: the id is taken, by an exec that was not deleted yet.
        :raises InvalidError: the id or the spec is not well formed.
        :raises WrongStateError: the container is paused or has ended.
        """
        exec_id = checked_id(request.exec_id, "exec id")
        if exec_id == "init":
            raise InvalidError("exec id init is the name of the container's own process")
        if exec_id in self.execs:
            raise ExistsError(f"exec {exec_id} already exists in {self.id}")
        self._check_exec()
        self.bundle.write_exec_spec(exec_id, process_of(request))
        self.execs[exec_id] = Process(exec_id, stdio_of(request))
        self._events.exec_added(exec_id)

    def _check_exec(self) -> None:
        self.init.life.check(Op.EXEC)
        if self._image.image_path and self.init.state is State.CREATED:
            raise WrongStateError("cannot exec in a container that waits to be restored")
        if self._ending:
            raise WrongStateError("cannot exec in a stopped process")

    async def _start_exec(self, process: Process) -> None:
        self._check_exec()
        await self._open_stdio(process)
        args = exec_args(
            self.id,
            self.bundle.exec_spec(process.id),
            Creation(self.bundle.pid_file(process.id), process.console_socket),
        )
        try:
            child = await create_exec(
                self._runc,
                self.bundle,
                process,
                args,
                init=self.init,
                host=self._host,
                cgroup=self._cgroup,
            )
        except BaseException:
            await process.discard_stdio()
            raise
        if self.init.exit is not None:
            # Its init is dead and told so: an exec of it can never be told as begun.
            with contextlib.suppress(NotFoundError):
                child.signal(SIGKILL)
            process.child, process.pid = None, 0
            await process.discard_stdio()
            raise WrongStateError("cannot exec in a stopped process")
        process.life.apply(Op.START)
        self._events.exec_started(process.id, child.pid)
        self._host.go(lambda: self._follow_exec(process, child))

    # -- what a manager asks -----------------------------------------------------

    def process(self, exec_id: str) -> Process:
        """:raises NotFoundError: there is no such exec."""
        if not exec_id:
            return self.init
        try:
            return self.execs[exec_id]
        except KeyError:
            raise NotFoundError(f"exec {exec_id} does not exist in {self.id}: not found") from None

    def state_of(self, process: Process) -> State:
        """The state to report: while a container is paused, so are its execs."""
        paused = self.init.state is State.PAUSED and process.state is State.RUNNING
        return State.PAUSED if paused else process.state

    async def start(self, exec_id: str) -> int:
        """Start the init or an exec; return its pid."""
        process = self.process(exec_id)
        async with process.busy:
            process.life.check(Op.START)
            if process is not self.init:
                await self._start_exec(process)
                return process.pid
            if self._image.image_path:
                await self._restore_init()
            else:
                # The caller may give up, the container starts all the same: its
                # state must say so.  The runtime's own limit bounds this.
                with trio.CancelScope(shield=True):
                    await self._runc.run("start", self.id)
            process.life.apply(Op.START)
            self._events.started(process.pid)
            if self._image.image_path:
                self._follow_init()
            return process.pid

    async def delete(self, exec_id: str) -> tuple[int, Exit]:
        """Delete the container or an exec that has ended; return its pid and exit.

        What the process wrote before it ended has reached its readers then, or
        ten seconds have passed.
        """
        process = self.process(exec_id)
        await self._end_unstarted(process)
        async with process.busy:
            process.life.check(Op.DELETE)
            await process.drain()
            exit_ = process.exit or NEVER_STARTED
            if process is self.init:
                await self._delete_container(exit_)
            else:
                # The container may have been deleted meanwhile, and all its execs.
                self.execs.pop(exec_id, None)
                self.bundle.remove_exec_files(exec_id)
            process.life.apply(Op.DELETE)
            await process.dispose()
        return process.pid, exit_

    async def _end_unstarted(self, process: Process) -> None:
        if process.state is not State.CREATED:
            return  # it never is again
        async with process.busy:  # a Start under way decides first
            if process.state is not State.CREATED or process.child is None:
                return
            with contextlib.suppress(NotFoundError):
                process.child.signal(SIGKILL)
        await process.wait()

    async def _delete_container(self, exit_: Exit) -> None:
        # Beside the runtime, so that nothing but the answer is left when it returns.
        self._host.go(self.init.close_stdio)
        self._stop_oom()
        try:
            await self._runc.run("delete", self.id)
        except ForeignContainerError as exc:
            log.warning("the runtime's container is left alone", id=self.id, error=exc)
        except NotFoundError:
            # Somebody was here before: what counts is that it is gone.
            if self._runtime_state.exists():
                raise
        except ShimError as exc:
            log.warning("runtime delete failed, forcing it", id=self.id, error=exc)
            await self._runc.run("delete", "--force", self.id)
        if self._mounted:
            await unmount_rootfs(str(self.bundle.rootfs))
        for process in list(self.execs.values()):
            await process.dispose()
            self.bundle.remove_exec_files(process.id)
        self.execs.clear()
        self._host.cleanup_records.remove(self.id)
        self._events.deleted(self.init.pid, exit_)

    async def kill(self, exec_id: str, number: int, *, all_: bool) -> None:
        """Send a signal to one process, or to all of the container.

        :raises NotFoundError: the process has ended, and the manager is not one
            that takes this for a failure: see :attr:`Host.ended_is_killed`.
        """
        process = self.process(exec_id)
        try:
            await self._kill(process, number, all_=all_)
        except NotFoundError:
            if not (self._host.ended_is_killed and number in _ENDING):
                raise

    async def _kill(self, process: Process, number: int, *, all_: bool) -> None:
        process.life.check(Op.KILL)
        if number > 64:
            raise InvalidError(f"there is no signal {number}")
        all_ = all_ and process is self.init
        held = self._freezer.needs_runtime(number, self._cgroup) or (all_ and self._cgroup is None)
        if held and process is self.init:
            await self._freezer.kill(number, all_=all_)
        elif all_ and self._cgroup is not None:
            self._cgroup.signal_all(number)
        else:
            process.signal(number)

    async def pause(self) -> None:
        """Freeze the container, its execs too."""
        await self._freezer.pause()

    async def resume(self) -> None:
        """Let it go on."""
        await self._freezer.resume()

    async def update(self, resources: AnyMessage) -> None:
        """:raises InvalidError: ``resources`` is not the JSON of LinuxResources."""
        self.init.life.check(Op.UPDATE)
        data = jsontext.dumps(json_of(resources, "LinuxResources"))
        await self._runc.run("update", "--resources", "-", self.id, stdin=data)

    async def checkpoint(self, request: task_pb2.CheckpointTaskRequest) -> None:
        """Dump the container into ``request.path``; it goes on unless ``exit`` is asked."""
        self.init.life.check(Op.CHECKPOINT)
        image = await checkpoint(self._runc, self.id, self.bundle, request)
        self._events.checkpointed(image)

    def pids(self) -> list[int]:
        """Every process in the container, or else its init, though it may have ended.

        Never empty once there was an init: a containerd that restarts takes a
        shim without processes for one that never made its container, and
        deletes it together with the exit status nobody has read yet.
        """
        found = self._cgroup.pids() if self._cgroup is not None else []
        return found or ([self.init.pid] if self.init.pid else [])

    def stats(self) -> AnyMessage:
        """:raises NotFoundError: there is no cgroup, or no longer."""
        if self._cgroup is None:
            raise NotFoundError(f"container {self.id} has no cgroup to measure")
        return self._cgroup.metrics()

    # -- what happens by itself --------------------------------------------------

    def _follow_init(self) -> None:
        child = self.init.child
        if child is not None:
            self._host.go(lambda: self._await_init(child))

    async def _await_init(self, child: Child) -> None:
        exit_ = await self.init.record_exit(child, self.bundle)
        self._ending = True
        if self._oom is not None:
            self._oom.report()  # before systemd, where it looks after the cgroup, removes it
        await self.init.wait_output_read()
        # A Start that is under way is told first.
        async with self.init.busy:
            if not self._config.own_pid_namespace:
                await self._kill_remaining()
            with trio.move_on_after(EXECS_EXIT) as scope:
                await self._wait_for_execs()
            if scope.cancelled_caught:
                log.error("an exec outlives its init", id=self.id)
            if self._oom is not None:
                self._oom.report()
            self.init.set_exit(exit_)
            self._events.exited(self.init, exit_)

    async def _kill_remaining(self) -> None:
        """End what the kernel does not: without a pid namespace init was no init."""
        try:
            if self._cgroup is not None:
                self._cgroup.signal_all(SIGKILL)
            else:
                await self._runc.run("kill", "--all", self.id, str(SIGKILL))
        except (ShimError, OSError) as exc:
            log.warning("cannot kill what init left", id=self.id, error=exc)

    async def _wait_for_execs(self) -> None:
        late = [one for one in self.execs.values() if one.state is State.CREATED]
        for process in late:
            async with process.busy:  # a Start under way
                pass
        if late and not self._config.own_pid_namespace:
            await self._kill_remaining()  # what came into the container since
        for process in list(self.execs.values()):
            if process.state is not State.CREATED:
                await process.wait()

    async def _follow_exec(self, process: Process, child: Child) -> None:
        exit_ = await process.record_exit(child, self.bundle)
        await process.wait_output_read()
        process.set_exit(exit_)
        self._events.exited(process, exit_)
