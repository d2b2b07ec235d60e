"""The execs of a container: further processes that a client adds, and then starts in it.

An exec is refused once the init process has exited, so that every event of an exec precedes
the exit event of the init process.

Source: containerd-shim-runc-v2 process/exec.go.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

from shim.container.bundle import checked_id
from shim.container.create import create_exec
from shim.container.disk import wait_responsive
from shim.container.freezer import SIGKILL
from shim.container.lifecycle import Op, State
from shim.container.process import Process
from shim.container.requests import process_of, stdio_of
from shim.errors import (
    ExistsError,
    InvalidError,
    MustWaitError,
    NotFoundError,
    WrongStateError,
)
from shim.runc.command import Creation, exec_args

if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.api import task_pb2
    from shim.container.exits import Exits
    from shim.container.parts import ContainerParts


class Execs:
    """Adds and starts the execs of the container with ``parts``; ``exits`` follows them."""

    def __init__(self, parts: ContainerParts, exits: Exits) -> None:
        self._parts = parts
        self._exits = exits
        self._disk_responds = False  # it did just now, and the caller adds an exec at once

    def add(self, request: task_pb2.ExecProcessRequest, *, replayed: bool = False) -> None:
        """Add an exec; :meth:`start` runs it.  A ``replayed`` call may have added it already.

        :raises ExistsError: an exec of this id exists and is not deleted yet.
        :raises InvalidError: the id or the spec is not well formed.
        :raises WrongStateError: the container is paused or has exited.
        :raises MustWaitError: the bundle is on a disk, which is not known to respond.
        """
        exec_id = checked_id(request.exec_id, "exec id")
        if exec_id == "init":
            raise InvalidError("exec id init is reserved for the init process: use another id")
        if not self._parts.bundle.in_memory:
            if not self._disk_responds:
                raise MustWaitError(self._wait_for_disk)
            self._disk_responds = False  # at the next call it may hang
        if exec_id in self._parts.execs:
            if replayed and self._parts.execs[exec_id].spec == stdio_of(request):
                return
            raise ExistsError(f"exec {exec_id} already exists in {self._parts.id}")
        self._check()
        self._parts.bundle.write_exec_spec(exec_id, process_of(request))
        self._parts.execs[exec_id] = Process(exec_id, stdio_of(request))
        self._parts.events.exec_added(exec_id)

    async def _wait_for_disk(self) -> None:
        await wait_responsive(self._parts.bundle)
        self._disk_responds = True

    def _check(self) -> None:
        self._parts.init.life.check(Op.EXEC)
        if self._parts.image.image_path and self._parts.init.state is State.CREATED:
            raise WrongStateError("cannot exec in a container that waits to be restored")
        if self._exits.are_ending:
            raise WrongStateError("cannot exec in a stopped process")

    async def start(self, process: Process) -> None:
        """Run the runtime's exec for ``process``; the caller holds its ``busy`` lock.

        :raises WrongStateError: the init process exited meanwhile.
        :raises ShimError: the runtime failed, or the streams cannot be opened.
        """
        self._check()
        with self._parts.saved.start_of_exec(process) as begin:
            await self._parts.open_stdio(process)
            await self._run(process, begin)

    async def _run(self, process: Process, begin: Callable[[], None]) -> None:
        args = exec_args(
            self._parts.id,
            self._parts.bundle.exec_spec(process.id),
            Creation(self._parts.bundle.pid_file(process.id), process.console_socket),
        )
        try:
            child = await create_exec(
                self._parts.runc,
                self._parts.bundle,
                process,
                args,
                init=self._parts.init,
                host=self._parts.host,
                cgroup=self._parts.group.cgroup,
                before=begin,
                adopted=partial(self._parts.saved.adopt, process),
            )
        except BaseException:
            await process.discard_stdio()
            raise
        if self._parts.init.exit is not None:
            # The exit of the init process is published: no exec may be published as
            # started after it.
            with contextlib.suppress(NotFoundError):
                child.signal(SIGKILL)
            process.child, process.pid = None, 0
            self._parts.saved.forget(process.id)
            await process.discard_stdio()
            raise WrongStateError("cannot exec in a stopped process")
        process.life.apply(Op.START)
        process.doing = ""
        self._parts.events.exec_started(process.id, child.pid)
        self._exits.follow_exec(process, child)
