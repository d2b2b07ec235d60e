"""Deletes an exited exec, or an exited container with all that the runtime and the shim made.

A process that was created and never started is killed first.

Source: containerd-shim-runc-v2 process/deleted_state.go and process/init.go, delete.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from shim import log
from shim.container.disk import is_responsive
from shim.container.freezer import SIGKILL
from shim.container.lifecycle import Op, State
from shim.container.rootfs import unmount_rootfs
from shim.errors import NotFoundError, ShimError
from shim.exit import NEVER_STARTED
from shim.runc.driver import ForeignContainerError

if TYPE_CHECKING:
    from shim.container.init_creation import InitCreation
    from shim.container.parts import ContainerParts
    from shim.container.process import Process
    from shim.exit import Exit


class Deletion:
    """The deletion of the processes of the container with ``parts``.

    ``creation`` has the directory of the runtime for the container.
    """

    def __init__(self, parts: ContainerParts, creation: InitCreation) -> None:
        self._parts = parts
        self._creation = creation

    async def delete(self, process: Process) -> Exit:
        """Delete ``process``, with the container if it is the init process; return its exit.

        Waits at most ten seconds until readers have read the output of the process.

        :raises ShimError: the state does not allow it, or the runtime failed.
        """
        await self._end_unstarted(process)
        async with process.busy:
            process.life.check(Op.DELETE)
            await process.drain()
            exit_ = process.exit or NEVER_STARTED
            if process is self._parts.init:
                with self._parts.saved.operation("Delete", process):
                    await self._delete_container(exit_)
            else:
                responds = await is_responsive(self._parts.bundle, self._parts.id)
                # A concurrent Delete of the container may have deleted all its execs.
                self._parts.execs.pop(process.id, None)
                process.remove_exec_files(self._parts.bundle, responds=responds)
                process.life.apply(Op.DELETE)
                self._parts.saved.note_deleted(process.id, exit_)
            await process.dispose()
        return exit_

    async def _end_unstarted(self, process: Process) -> None:
        if process.state is not State.CREATED:
            return  # no process returns to CREATED
        async with process.busy:  # a concurrent Start completes first
            if process.state is not State.CREATED or process.child is None:
                return
            with contextlib.suppress(NotFoundError):
                process.child.signal(SIGKILL)
        await process.wait()

    async def _delete_container(self, exit_: Exit) -> None:
        # Runs beside the runtime's delete, to shorten this call.
        self._parts.host.go(self._parts.init.close_stdio)
        self._parts.group.stop_oom()
        try:
            await self._parts.runc.run("delete", self._parts.id)
        except ForeignContainerError as exc:
            log.warning("the container in the runtime is left alone", id=self._parts.id, error=exc)
        except NotFoundError:
            # Another process deleted the container in the runtime.
            if self._creation.runtime_state.exists():
                raise
        except ShimError as exc:
            log.warning(
                "cannot delete the container in the runtime: trying with --force",
                id=self._parts.id,
                error=exc,
            )
            await self._parts.runc.run("delete", "--force", self._parts.id)
        await self._creation.remove_unfinished()
        if self._parts.mounted:
            await unmount_rootfs(str(self._parts.bundle.rootfs))
        execs = list(self._parts.execs.values())
        responds = not execs or await is_responsive(self._parts.bundle, self._parts.id)
        for process in execs:
            await process.dispose()
            process.remove_exec_files(self._parts.bundle, responds=responds)
        self._parts.execs.clear()
        await self._parts.remove_cleanup_record()
        self._parts.init.life.apply(Op.DELETE)
        self._parts.init.doing = ""
        self._parts.events.deleted(exit_)
