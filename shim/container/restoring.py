"""Restores a container in the replacement of a killed daemon: processes, events and operations.

If the runtime has completed an interrupted operation, this module completes it too.  If not,
this module undoes the operation, or leaves it to its call, which the server calls again.
The operation's lock is held until then.
"""

from __future__ import annotations

import time
from contextlib import AsyncExitStack, suppress
from fcntl import F_DUPFD_CLOEXEC, fcntl
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from shim import log
from shim.cgroup.oom import OomCount
from shim.child import Child
from shim.container.disk import is_responsive
from shim.container.freezer import SIGKILL
from shim.container.lifecycle import Op, State
from shim.container.process import Process
from shim.errors import NotFoundError, ShimError
from shim.exit import UNKNOWN_STATUS, Exit
from shim.jsontext import loads
from shim.linux.fifos import Fd
from shim.records import read_exit
from shim.runc.orphans import Orphans
from shim.stdio.opening import discard_inherited, restore_stdio

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shim.container.exits import Exits
    from shim.container.freezer import Freezer
    from shim.container.init_creation import InitCreation
    from shim.container.parts import ContainerParts
    from shim.container.snapshot import ContainerSnapshot, ProcessSnapshot
    from shim.recovery.inherited import Inherited


# Seconds for the calls of a killed daemon to be replayed.
REPLAYED = 10.0
# The streams to hold, by role.
_HELD = ("stdin", "stdout", "stderr")


class Restoring:
    """The restoring of the container with ``parts``; the others are operations on it."""

    def __init__(
        self, parts: ContainerParts, creation: InitCreation, freezer: Freezer, exits: Exits
    ) -> None:
        self._creation = creation
        self._freezer = freezer
        self._exits = exits
        self._parts = parts
        # The streams that are kept, by the id of the exec, "" for the init process.
        self._held: dict[str, list[Fd]] = {}
        self._must_reopen = False  # the streams of a container that waits to be restored
        # For each exec with a Start under way: its pidfd, -1 if there is none yet.
        self._started: dict[str, int] = {}
        # Set when no operation is under way that a killed daemon began.
        self.settled = trio.Event()
        self._orphans = Orphans(parts.runc.runtime.root, parts.id, self._parts.host.adopter)

    async def run(self, snapshot: ContainerSnapshot, inherited: Inherited) -> None:
        """Set all parts to the state ``snapshot``, with the container's fds in ``inherited``.

        Returns when the locks of the operations under way are held.
        """
        saved = self._parts.saved
        saved.doing, saved.deleted = snapshot.doing, dict(snapshot.deleted)
        saved.existed = snapshot.existed
        self._parts.group.restore(snapshot.cgroup)
        self._parts.init.restore(snapshot.init)
        self._parts.execs.update({one.id: Process.restored(one) for one in snapshot.execs})
        for one in (snapshot.init, *snapshot.execs):
            process = self._parts.execs[one.id] if one.id else self._parts.init
            await self._restore_process(process, one, inherited)
        # The event of a change that was saved precedes all that follow.
        self._parts.events.resume(snapshot.pending)
        for process in (self._parts.init, *self._parts.execs.values()):
            if process.exit is not None:
                process.note_published(self._parts.bundle)
        saved.save()
        if snapshot.oom is not None:
            await self._parts.group.watch_oom(self._parts.host.nursery, OomCount(*snapshot.oom))
        # Those of the operations under way are not among them.
        running = [one for one in self._parts.execs.values() if one.child and one.exit is None]
        await self._parts.host.nursery.start(self._settle)
        self._exits.are_ending = self._parts.init.exit is not None
        if self._parts.init.exit is None:
            self._exits.follow_init()
        for process in running:
            assert process.child is not None
            self._exits.follow_exec(process, process.child)

    def kill(self) -> None:
        """Kill the processes that are followed: their container is lost."""
        for process in (self._parts.init, *self._parts.execs.values()):
            if process.child is not None:
                with suppress(NotFoundError):
                    process.child.signal(SIGKILL)

    def give_up(self) -> None:
        """Have the init process, which is killed, exit with its record or an unknown status."""
        pid = self._parts.bundle.read_pid()
        exit_ = read_exit(str(self._parts.bundle.path))
        if exit_ is None or exit_.pid != pid:
            exit_ = Exit(pid, UNKNOWN_STATUS, time.time_ns(), "the state of its shim is lost")
        child = Child(pid, -1)
        child.set_exit(exit_)
        self._parts.init.set_child(child)
        self._exits.follow_init()
        self.settled.set()

    async def _restore_process(
        self, process: Process, snapshot: ProcessSnapshot, inherited: Inherited
    ) -> None:
        prefix = self._parts.saved.stdio_prefix(process.id)
        fds = inherited.take_all(prefix)
        is_created = self._parts.saved.doing != "Create"
        to_restore = is_created and not snapshot.pid and snapshot.state is State.CREATED
        # Its Start was under way, and had not begun to run the runtime: it begins again.
        is_prepared = bool(process.id and to_restore and not process.doing and fds)
        if process is self._parts.init and (to_restore or not is_created):
            self._hold_streams("", fds, inherited)
            self._must_reopen = to_restore
        elif is_prepared:
            self._hold_streams(process.id, fds, inherited)
            self._parts.host.go(partial(self._release_later, process.id))
        elif process.id and to_restore and process.doing == "Start":
            self._hold_streams(process.id, fds, inherited)  # it may begin again
        if snapshot.stdio is not None and not is_prepared:
            process.set_stdio(
                restore_stdio(
                    snapshot.stdio,
                    fds,
                    nursery=self._parts.host.nursery,
                    reaper=self._parts.host.reaper,
                    deposit=self._parts.host.deposit,
                    prefix=prefix,
                )
            )
            if process.pid and is_created:
                await process.connect_stdio()
        else:
            discard_inherited(fds, self._parts.host.deposit, prefix)
        name = self._parts.saved.pidfd_name(process.id)
        pidfd = inherited.take(name)
        if process.id and process.doing == "Start" and not process.pid:
            self._started[process.id] = pidfd
        elif process.pid and process.exit is None:
            process.set_child(self._child_of(process, pidfd, name))
        elif pidfd >= 0:
            Child(process.pid, pidfd).set_exit(process.exit or Exit(0, 0, 0))  # closes it
            self._parts.saved.forget(process.id)

    def _hold_streams(self, exec_id: str, fds: Mapping[str, int], inherited: Inherited) -> None:
        """Keep the manager's fifos of a process open until :meth:`release_streams`.

        Otherwise its readers would see the end of the output before the Create, which is
        undone, or the Start of an exec runs again, or before Start restores the container
        from a checkpoint.
        """
        prefix = f"hold/{self._parts.id}/{exec_id and exec_id + '/'}"
        names = [prefix + role for role in _HELD]
        numbers = {role: inherited.take(name) for role, name in zip(_HELD, names, strict=True)}
        held = {role: Fd(number) for role, number in numbers.items() if number >= 0}
        for role in _HELD:
            if role in fds and role not in held:
                held[role] = Fd(fcntl(fds[role], F_DUPFD_CLOEXEC, 3))
        self._held[exec_id] = list(held.values())
        self._parts.host.deposit.hold({prefix + role: fd for role, fd in held.items()})

    def release_streams(self, exec_id: str) -> None:
        """Close the fifos of a process that are kept: they were opened again, or will not be."""
        for fd in self._held.pop(exec_id, ()):
            fd.close()

    async def _release_later(self, exec_id: str) -> None:
        await trio.sleep(REPLAYED)
        self.release_streams(exec_id)

    async def reopen_streams(self) -> None:
        """Open the streams again before Start restores the container from a checkpoint.

        Create has opened them, and only the killed daemon had the process's ends.

        :raises ShimError, OSError: a stream cannot be opened.
        """
        if self._must_reopen:
            await self._parts.init.discard_stdio()
            await self._parts.open_stdio(self._parts.init)
            self._parts.saved.save()
            self._must_reopen = False
            self.release_streams("")

    def _child_of(self, process: Process, pidfd: int, name: str) -> Child:
        """Return the child of ``process``, which may have ended."""
        path = str(self._parts.bundle.path)
        record = read_exit(path, process.id)
        if record is None or record.pid != process.pid:
            if pidfd >= 0:
                return self._parts.host.reaper.watch_inherited(
                    process.pid, pidfd, name, self._parts.host.deposit
                )
            record = Exit(process.pid, UNKNOWN_STATUS, time.time_ns(), "its pidfd is lost")
            log.error(
                "cannot follow a process: its pidfd is lost", id=self._parts.id, pid=process.pid
            )
        child = Child(process.pid, pidfd)
        child.set_exit(record)
        return child

    async def wait_commands(self, limit: float) -> None:
        """Wait until no runtime command of the killed daemon runs; see :class:`Orphans`."""
        await self._orphans.wait(limit)

    # -- operations that were under way --------------------------------------------

    async def _settle(self, task_status: trio.TaskStatus[None]) -> None:
        """Complete the operations under way, or leave them to their replayed calls."""
        async with AsyncExitStack() as locks:
            held = [one for one in (self._parts.init, *self._parts.execs.values()) if one.doing]
            for process in held:
                await locks.enter_async_context(process.busy)
            if self._parts.saved.doing in ("Pause", "Resume"):
                await locks.enter_async_context(self._freezer.lock)
            task_status.started()
            if not held and self._parts.saved.doing not in ("Pause", "Resume"):
                self.settled.set()
                return
            log.info("an operation was under way when the shim was killed", id=self._parts.id)
            try:
                await self._orphans.wait(self._parts.host.limit)
                for process in held:
                    await self._settle_process(process)
                if self._parts.saved.doing in ("Pause", "Resume"):
                    await self._settle_freezer()
            except Exception as exc:
                log.crash("cannot settle what a killed shim did", exc, id=self._parts.id)
            finally:
                self.settled.set()

    async def _settle_process(self, process: Process) -> None:
        if process is not self._parts.init:
            if process.doing == "Start" and process.state is State.CREATED:
                await self._settle_exec(process)
            else:
                process.doing = ""
                self._parts.saved.save()
            return
        doing, process.doing = process.doing, ""
        if doing != "Start" or process.state is not State.CREATED:
            pass
        elif not process.pid:  # it was being restored from a checkpoint
            await self._undo_runtime(self._parts.saved.existed)
        elif await self._has_started():
            process.life.apply(Op.START)
            self._parts.events.started(process.pid)
            return
        self._parts.saved.save()

    async def _settle_exec(self, process: Process) -> None:
        """Follow the exec if the runtime has started it; end it otherwise.

        Its Start begins again if the runtime has not begun.  Otherwise ``doing`` stays for
        its Start, which fails: the program may have run.
        """
        pid = self._parts.bundle.read_pid(process.id)
        if (pidfd := self._started.get(process.id, -1)) < 0:
            pidfd = await self._orphans.open(pid)
        name = self._parts.saved.pidfd_name(process.id)
        if pidfd >= 0:
            self._parts.host.deposit.put({name: pidfd})  # the keeper keeps its exit from now on
            child = self._parts.host.reaper.watch_inherited(
                pid, pidfd, name, self._parts.host.deposit
            )
            try:
                await process.connect_stdio()
            except ShimError as exc:
                log.warning("ending an exec without its streams", exec=process.id, error=exc)
                with suppress(NotFoundError):
                    child.signal(SIGKILL)
            else:
                process.set_child(child)
                process.life.apply(Op.START)
                process.doing = ""
                self._parts.events.exec_started(process.id, pid)
                self._exits.follow_exec(process, child)
                self.release_streams(process.id)
                return
        await process.discard_stdio()
        # A runtime makes its log before it does anything else.
        if not pid and not Path(self._parts.bundle.exec_log(process.id)).exists():
            process.doing = ""
            self._parts.host.go(partial(self._release_later, process.id))
        else:
            log.warning("an exec was interrupted", id=self._parts.id, exec=process.id, pid=pid)
            self.release_streams(process.id)
        if await is_responsive(self._parts.bundle, self._parts.id):
            self._parts.bundle.remove_pid_files(process.id)
        self._parts.saved.forget(process.id)
        self._parts.saved.save()

    async def _has_started(self) -> bool:
        """Return whether the runtime has started the init process."""
        if (self._creation.runtime_state / "exec.fifo").exists():  # runc, crun and youki
            return False
        return await self._status() in ("running", "paused", "stopped")

    async def _settle_freezer(self) -> None:
        paused = await self._status() == "paused"
        doing, self._parts.saved.doing = self._parts.saved.doing, ""
        if doing == "Pause" and paused:
            self._freezer.note_paused()
        elif doing == "Resume" and not paused:
            self._freezer.note_resumed()
        self._parts.saved.save()

    async def _status(self) -> str:
        """Return the status that the runtime has for the container, "" if it has none."""
        try:
            found = loads(await self._parts.runc.run("state", self._parts.id))
        except (ShimError, ValueError) as exc:
            log.debug("cannot read the runtime's state", id=self._parts.id, error=exc)
            return ""
        return str(found.get("status", "")) if isinstance(found, dict) else ""

    async def undo_create(self) -> None:
        """Undo an interrupted Create, but for the mounts of the rootfs."""
        await self._orphans.kill()
        await self._undo_runtime(self._parts.saved.existed)
        await self._parts.init.dispose()

    async def _undo_runtime(self, existed: tuple[str, ...] | None) -> None:
        if existed is None:  # the runtime did not run
            return
        self._orphans.end(self._parts.bundle.read_pid())
        await self._creation.undo_interrupted(existed, self._orphans.end)
