"""A container standing still: pause, resume, and the signals that only a runtime can give then.

What is frozen cannot be killed by the kernel alone under cgroup v1: SIGKILL waits
for the thaw, which the runtime does.

Source: containerd-shim-runc-v2 process/init_state.go; runc's kill and pause.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import trio

from shim.cgroup.v1 import CgroupV1
from shim.container.lifecycle import Op, State
from shim.errors import ShimError
from shim.runc.driver import RuntimeFailedError

if TYPE_CHECKING:
    from shim.cgroup.find import Cgroup
    from shim.container.process import Process
    from shim.container.task_events import TaskEvents
    from shim.runc.driver import Runc

SIGKILL = 9
# Seconds to thaw what a pause that failed may have frozen.
_THAW = 10.0


class Freezer:
    """Of the container ``id_``, whose first process is ``init``."""

    def __init__(self, id_: str, init: Process, runc: Runc, events: TaskEvents) -> None:
        self._id = id_
        self._init = init
        self._runc = runc
        self._events = events
        # A pause and a resume take turns; who comes second finds what the first did.
        self._lock = trio.Lock()

    async def pause(self) -> None:
        """:raises WrongStateError: the container does not run, or stands still already."""
        async with self._lock:
            self._init.life.check(Op.PAUSE)
            try:
                await self._runc.run("pause", self._id)
            except BaseException:
                # It may be frozen already; a frozen process cannot even be killed.
                with trio.move_on_after(_THAW, shield=True), contextlib.suppress(ShimError):
                    await self._runc.run("resume", self._id)
                raise
            self._init.life.apply(Op.PAUSE)
            if self._init.state is State.PAUSED:  # it may have ended meanwhile
                self._events.paused()

    async def resume(self) -> None:
        """:raises WrongStateError: the container is not paused."""
        async with self._lock:
            self._init.life.check(Op.RESUME)
            try:
                await self._runc.run("resume", self._id)
            except RuntimeFailedError as exc:
                # An earlier attempt, given up by its caller, had thawed it.
                if "not paused" not in str(exc):
                    raise
            self._init.life.apply(Op.RESUME)
            if self._init.state is State.RUNNING:
                self._events.resumed()

    def needs_runtime(self, number: int, cgroup: Cgroup | None) -> bool:
        """Say whether only the runtime can give the init this signal."""
        if self._init.state is State.PAUSED:
            return True
        # Somebody else may have frozen it; we were never told.
        return number == SIGKILL and isinstance(cgroup, CgroupV1) and cgroup.is_frozen()

    async def kill(self, number: int, *, all_: bool) -> None:
        """Send a signal through the runtime, which thaws the container for a SIGKILL."""
        args = (*(["--all"] if all_ else []), self._id, str(number))
        try:
            await self._runc.run("kill", *args)
        except RuntimeFailedError:
            if number != SIGKILL or self._init.state is not State.PAUSED:
                raise
            # gVisor signals nothing that is paused.
            await self._runc.run("resume", self._id)
            await self._runc.run("kill", *args)
