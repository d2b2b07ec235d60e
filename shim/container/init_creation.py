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
from shim.container.failed_create import FailedCreate
from shim.container.freezer import SIGKILL
from shim.errors import ExistsError, NotFoundError, ShimError
from shim.runc.command import Creation, create_args, restore_args
from shim.runc.driver import ForeignContainerError
from shim.runc.unfinished import remove_unfinished

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from shim.container.parts import ContainerParts
    from shim.runc.command import Checkpoint

# Seconds to undo a failed create; after that an error is logged.
UNDO = 10.0


class InitCreation:
    """The creation of the init process of the container with ``parts``."""

    def __init__(self, parts: ContainerParts) -> None:
        self._id = parts.id
        self._bundle = parts.bundle
        self._init = parts.init
        self._runc = parts.runc
        self._host = parts.host
        self._config = parts.config
        self._options = parts.options
        self._group = parts.group
        self._cleanup_records = parts.cleanup_records
        self._saved = parts.saved

    async def create(self) -> None:
        """Run the runtime's create.

        :raises ShimError: it failed; its partial container is removed.
        """
        args = create_args(
            self._id,
            str(self._bundle.path),
            Creation(self._bundle.pid_file(), self._init.console_socket),
            no_pivot=self._options.no_pivot_root,
            no_new_keyring=self._options.no_new_keyring,
        )
        await self._run_create("create", args)

    async def restore(self, image: Checkpoint) -> None:
        """Run the runtime's restore.

        :raises ShimError: as :meth:`create`.
        """
        args = restore_args(
            self._id,
            str(self._bundle.path),
            Creation(self._bundle.pid_file(), self._init.console_socket),
            image,
            no_pivot=self._options.no_pivot_root,
        )
        await self._run_create("restore", args)

    async def _run_create(self, verb: str, args: list[str]) -> None:
        # The undoing of a failed create must not delete an earlier container of this id.
        state = self.runtime_state
        if state.exists():
            raise ExistsError(f"the runtime already has a container {self._id}, see {state}")
        failed_create = FailedCreate(self._id, self._config.cgroups_path)
        self._write_cleanup_record()
        self._saved.existed = tuple(failed_create.existing)
        self._saved.save()
        try:
            child = await create_process(
                self._runc,
                self._bundle,
                self._init,
                verb,
                args,
                failed_create.find,
                adopted=partial(self._saved.adopt, self._init),
            )
            self._group.find(child)
            self._write_cleanup_record()
            await self._group.watch_oom(self._host.nursery)
            # If the client has closed its connection, it gets no reply: these checkpoints
            # let the server read the close and cancel the create, which is then undone.
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
        except BaseException:
            await self._undo_creation(failed_create, self._host.reaper.kill_orphan)
            raise

    @property
    def runtime_state(self) -> Path:
        """The directory of the runtime for the container."""
        return Path(self._runc.runtime.root) / self._id

    async def undo_interrupted(
        self, existed: Collection[str], kill_orphan: Callable[[int], None]
    ) -> None:
        """Remove the partial container of a killed daemon; ``existed`` is as in its state.

        ``kill_orphan`` kills a process that the runtime left.
        """
        failed_create = FailedCreate(self._id, self._config.cgroups_path, existed)
        await self._undo_creation(failed_create, kill_orphan)

    async def _undo_creation(
        self, failed_create: FailedCreate, kill_orphan: Callable[[int], None]
    ) -> None:
        with trio.move_on_after(UNDO, shield=True) as scope:
            if self._init.child is not None:  # the runtime may fail to delete it
                with contextlib.suppress(NotFoundError):
                    self._init.child.signal(SIGKILL)
            try:
                await self._runc.run("delete", "--force", self._id)
            except ForeignContainerError:
                pass  # the runtime rejected the create, and that container has the cgroup
            except (ShimError, OSError) as exc:
                log.debug("cannot delete a failed create in the runtime", id=self._id, error=exc)
                await failed_create.remove(kill_orphan)
            else:
                await failed_create.remove(kill_orphan)
            self.remove_unfinished()
        if scope.cancelled_caught:
            log.error(
                f"cannot undo a failed create within {UNDO:g} s: delete the "
                "container in the runtime by hand",
                id=self._id,
            )
        self._group.forget()
        self._init.child, self._init.pid = None, 0
        self._saved.existed = None
        self._saved.forget("")
        self._bundle.remove_pid_files()

    def remove_unfinished(self) -> None:
        """Remove the mounts and the directory that a killed runtime command has left."""
        try:
            remove_unfinished(self._runc.runtime.root, self._id)
        except (ShimError, OSError) as exc:
            log.warning(
                "cannot remove the directory of a killed runtime command", id=self._id, error=exc
            )

    def _write_cleanup_record(self) -> None:
        """Write the record by which ``delete`` ends this container without the daemon."""
        record = CleanupRecord(
            self._id,
            str(self._bundle.path),
            self._runc.runtime,
            self._init.pid,
            cgroup_names_of(self._group.cgroup),
            self._config.own_pid_namespace,
        )
        self._cleanup_records.write(record)
