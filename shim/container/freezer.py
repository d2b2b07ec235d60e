"""Pause, resume, and the signals for a paused container, which only the runtime can send.

On cgroup v1 a frozen process dies of a SIGKILL only after the thaw, which the runtime does.

Source: containerd-shim-runc-v2 process/init_state.go; runc's kill and pause.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from shim import log
from shim.cgroup.v1 import CgroupV1
from shim.container.lifecycle import Op, State
from shim.errors import ShimError
from shim.runc.driver import RuntimeFailedError
from shim.text import explain

if TYPE_CHECKING:
    from shim.cgroup.find import Cgroup
    from shim.container.process import Process
    from shim.container.saved import SavedState
    from shim.container.task_events import TaskEvents
    from shim.runc.driver import Runc

SIGKILL = 9
# Seconds to thaw a container that a failed pause may have frozen.
_THAW = 10.0
# A part of the message of a resume for a container that is not frozen.
_NOT_PAUSED = "not paused"


class Freezer:
    """Pauses and resumes the container ``id_``, whose init process is ``init``."""

    def __init__(
        self, id_: str, init: Process, runc: Runc, events: TaskEvents, saved: SavedState
    ) -> None:
        self._id = id_
        self._init = init
        self._runc = runc
        self._events = events
        self._saved = saved
        # Pause and resume exclude each other; the second finds the state the first has set.
        self.lock = trio.Lock()

    async def pause(self, *, replayed: bool = False) -> None:
        """Freeze the container.  A ``replayed`` call finds it paused if it had succeeded.

        :raises WrongStateError: the container does not run, or is paused already.
        :raises ShimError: the runtime failed.
        """
        async with self.lock:
            if replayed and self._init.state is State.PAUSED:
                return
            self._init.life.check(Op.PAUSE)
            with self._saved.operation("Pause"):
                try:
                    await self._runc.run("pause", self._id)
                except BaseException:
                    # The container may be frozen already, and could not be killed then.
                    await self._thaw()
                    raise
                self.note_paused()

    def note_paused(self) -> None:
        """Change the state of the frozen container, and publish that."""
        self._init.life.apply(Op.PAUSE)
        self._saved.doing = ""
        if self._init.state is State.PAUSED:  # it may have exited meanwhile
            self._events.paused()

    async def _thaw(self) -> None:
        """Thaw the container if it is frozen; log a warning if that fails."""
        error = f"not finished within {_THAW:g} s"
        with trio.move_on_after(_THAW, shield=True):
            try:
                await self._runc.run("resume", self._id)
                return  # noqa: TRY300 - the branches are the errors
            except (ShimError, OSError) as exc:
                error = explain(exc)
                if _NOT_PAUSED in error:
                    return
        log.warning("cannot thaw the container after a failed pause", id=self._id, error=error)

    async def resume(self, *, replayed: bool = False) -> None:
        """Thaw the container.  A ``replayed`` call finds it running if it had succeeded.

        :raises WrongStateError: the container is not paused.
        :raises ShimError: the runtime failed.
        """
        async with self.lock:
            if replayed and self._init.state is State.RUNNING:
                return
            self._init.life.check(Op.RESUME)
            with self._saved.operation("Resume"):
                try:
                    await self._runc.run("resume", self._id)
                except RuntimeFailedError as exc:
                    # An earlier, cancelled resume has thawed it.
                    if _NOT_PAUSED not in str(exc):
                        raise
                self.note_resumed()

    def note_resumed(self) -> None:
        """Change the state of the thawed container, and publish that."""
        self._init.life.apply(Op.RESUME)
        self._saved.doing = ""
        if self._init.state is State.RUNNING:
            self._events.resumed()

    def needs_runtime(self, number: int, cgroup: Cgroup | None) -> bool:
        """Return whether only the runtime can send this signal to the init process."""
        if self._init.state is State.PAUSED:
            return True
        # A program other than the manager may have frozen the cgroup.
        return number == SIGKILL and isinstance(cgroup, CgroupV1) and cgroup.is_frozen()

    async def kill(self, number: int, *, all_: bool) -> None:
        """Send a signal through the runtime, which thaws the container for a SIGKILL.

        :raises ShimError: the runtime failed.
        """
        args = (*(["--all"] if all_ else []), self._id, str(number))
        try:
            await self._runc.run("kill", *args)
        except RuntimeFailedError:
            if number != SIGKILL or self._init.state is not State.PAUSED:
                raise
            # gVisor sends no signal to a paused container.
            await self._runc.run("resume", self._id)
            await self._runc.run("kill", *args)
