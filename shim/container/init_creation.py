"""Creates or restores the init process of a container, and undoes a create that fails."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from shim import log
from shim.container.cleanup_records import CleanupRecord, cgroup_names_of
from shim.container.create import create_process
from shim.container.disk import is_responsive
from shim.container.failed_create import FailedCreate
from shim.container.freezer import SIGKILL
from shim.errors import ExistsError, NotFoundError, ShimError
from shim.runc.command import Creation, create_args, restore_args
from shim.runc.driver import ForeignContainerError
from shim.runc.unfinished import remove_unfinished

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from shim.container.parts import ContainerParts
    from shim.runc.command import Checkpoint

# Seconds to undo a failed create; after that an error is logged.
UNDO = 10.0


class InitCreation:
    """The creation of the init process of the container with ``parts``."""

    def __init__(self, parts: ContainerParts) -> None:
        self._parts = parts

    async def create(self) -> None:
        """Run the runtime's create.

        :raises ShimError: it failed; its partial container is removed.
        """
        args = create_args(
            self._parts.id,
            str(self._parts.bundle.path),
            Creation(self._parts.bundle.pid_file(), self._parts.init.console_socket),
            no_pivot=self._parts.options.no_pivot_root,
            no_new_keyring=self._parts.options.no_new_keyring,
        )
        await self._run_create("create", args)

    async def restore(self, image: Checkpoint) -> None:
        """Run the runtime's restore.

        :raises ShimError: as :meth:`create`.
        """
        args = restore_args(
            self._parts.id,
            str(self._parts.bundle.path),
            Creation(self._parts.bundle.pid_file(), self._parts.init.console_socket),
            image,
            no_pivot=self._parts.options.no_pivot_root,
        )
        await self._run_create("restore", args)

    async def _run_create(self, verb: str, args: list[str]) -> None:
        # The undoing of a failed create must not delete an earlier container of this id.
        state = self.runtime_state
        if state.exists():
            raise ExistsError(f"the runtime already has a container {self._parts.id}, see {state}")
        failed_create = FailedCreate(self._parts.id, self._parts.config.cgroups_path)
        await self._write_cleanup_record()
        self._parts.saved.existed = tuple(failed_create.existing)
        self._parts.saved.save()
        try:
            child = await create_process(
                self._parts.runc,
                self._parts.bundle,
                self._parts.init,
                verb,
                args,
                failed_create.find,
                adopted=partial(self._parts.saved.adopt, self._parts.init),
            )
            self._parts.group.find(child)
            await self._write_cleanup_record()
            await self._parts.group.watch_oom(self._parts.host.nursery)
            # If the client has closed its connection, it gets no reply: these checkpoints
            # let the server read the close and cancel the create, which is then undone.
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
        except BaseException:
            await self._undo_creation(failed_create, self._parts.host.reaper.kill_orphan)
            raise

    @property
    def runtime_state(self) -> Path:
        """The directory of the runtime for the container."""
        return Path(self._parts.runc.runtime.root) / self._parts.id

    async def undo_interrupted(
        self, existed: Collection[str], kill_orphan: Callable[[int], None]
    ) -> None:
        """Remove the partial container of a killed daemon; ``existed`` is as in its state.

        ``kill_orphan`` kills a process that the runtime left.
        """
        failed_create = FailedCreate(self._parts.id, self._parts.config.cgroups_path, existed)
        await self._undo_creation(failed_create, kill_orphan)

    async def _undo_creation(
        self, failed_create: FailedCreate, kill_orphan: Callable[[int], None]
    ) -> None:
        with trio.move_on_after(UNDO, shield=True) as scope:
            if self._parts.init.child is not None:  # the runtime may fail to delete it
                with contextlib.suppress(NotFoundError):
                    self._parts.init.child.signal(SIGKILL)
            try:
                await self._parts.runc.run("delete", "--force", self._parts.id)
            except ForeignContainerError:
                pass  # the runtime rejected the create, and that container has the cgroup
            except (ShimError, OSError) as exc:
                log.debug(
                    "cannot delete a failed create in the runtime", id=self._parts.id, error=exc
                )
                await failed_create.remove(kill_orphan)
            else:
                await failed_create.remove(kill_orphan)
            await self.remove_unfinished()
        if scope.cancelled_caught:
            log.error(
                f"cannot undo a failed create within {UNDO:g} s: delete the "
                "container in the runtime by hand",
                id=self._parts.id,
            )
        self._parts.group.forget()
        self._parts.init.child, self._parts.init.pid = None, 0
        self._parts.saved.existed = None
        self._parts.saved.forget("")
        with trio.CancelScope(shield=True):  # it has a time limit
            if await is_responsive(self._parts.bundle, self._parts.id):
                self._parts.bundle.remove_pid_files()

    async def remove_files(self, written: Sequence[str] = ()) -> None:
        """Remove the files ``written`` by a failed create, and the cleanup record.

        Files on a disk that hangs stay.
        """
        with trio.CancelScope(shield=True):  # each disk has a time limit
            if written and await is_responsive(self._parts.bundle, self._parts.id):
                self._parts.bundle.remove_files(written)
            await self._parts.remove_cleanup_record()

    async def remove_unfinished(self) -> None:
        """Remove the mounts and the directory that a killed runtime command has left."""
        try:
            await remove_unfinished(self._parts.runc.runtime.root, self._parts.id)
        except (ShimError, OSError) as exc:
            log.warning(
                "cannot remove the directory of a killed runtime command",
                id=self._parts.id,
                error=exc,
            )

    async def _write_cleanup_record(self) -> None:
        """Write the record by which ``delete`` ends this container without the daemon."""
        record = CleanupRecord(
            self._parts.id,
            str(self._parts.bundle.path),
            self._parts.runc.runtime,
            self._parts.init.pid,
            cgroup_names_of(self._parts.group.cgroup),
            self._parts.config.own_pid_namespace,
        )
        await self._parts.write_cleanup_record(record)
