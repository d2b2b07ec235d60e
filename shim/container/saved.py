"""Saves the state of a container, and the pidfds of its processes, for a replacement daemon."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from shim.container.snapshot import Constants, ContainerSnapshot, Encoder
from shim.recovery.slot import StateSlot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from shim.api.task_pb2 import CreateTaskRequest
    from shim.child import Child
    from shim.container.bundle import Config
    from shim.container.cgroup import ContainerCgroup
    from shim.container.options import Options
    from shim.container.process import Process
    from shim.exit import Exit
    from shim.recovery.deposit import Deposit

# Deleted execs to remember, for a Delete that is called again by a replacement.
_DELETED = 16


class SavedState:
    """The state of a container in ``deposit``; without a keeper nothing is saved.

    ``slot`` is that of an earlier daemon, owned from now on.  ``group`` is set before the
    first :meth:`save`.  The other attributes are fields of the
    :class:`~shim.container.snapshot.ContainerSnapshot`.
    """

    group: ContainerCgroup

    def __init__(
        self,
        request: CreateTaskRequest,
        config: Config,
        options: Options,
        init: Process,
        execs: Mapping[str, Process],
        deposit: Deposit,
        slot: StateSlot | None = None,
    ) -> None:
        self.doing = ""
        self.pending = b""
        self.deleted: dict[str, Exit] = {}
        self.existed: tuple[str, ...] | None = None
        self._has_posted = False  # the saved state has an event that the journal has, too
        self._id = request.id
        self._request = request
        self._config = config
        self._options = options
        self._init = init
        self._execs = execs
        self._deposit = deposit
        self._slot = slot
        self._encoder: Encoder | None = None
        self._held: dict[str, Child] = {}
        if slot is not None:
            deposit.use_own({f"state/{self._id}": slot.fd})

    @property
    def is_active(self) -> bool:
        """Whether a killed daemon is replaced, so that :meth:`save` has an effect."""
        return self._deposit.is_active

    def save(self) -> None:
        """Save the present state.

        Call it before an effect of the change is visible outside, and without an
        ``await`` after the change.  If it fails, the deposit is given up.
        """
        if not self._deposit.is_active:
            return
        self._has_posted = False
        try:
            if self._slot is not None:
                self._slot.write(self._encoded())
                return
            self._slot = StateSlot.new()
            self._slot.write(self._encoded())
        except OSError as exc:
            self._deposit.give_up(exc)
        else:
            self._deposit.lend({f"state/{self._id}": self._slot.fd})

    def note_posted(self, *, in_journal: bool) -> None:
        """Forget the ``pending`` event: it is queued.

        A replacement finds an event ``in_journal``, and does not publish it again.  So it
        leaves the saved state with the next change, or by :meth:`forget_posted`.
        """
        self.pending = b""
        if in_journal:
            self._has_posted = True
        else:
            self.save()

    def forget_posted(self) -> None:
        """Save the state without an event that the journal is about to forget."""
        if self._has_posted and self._slot is not None:
            self.save()

    @contextmanager
    def operation(self, name: str, process: Process | None = None) -> Iterator[None]:
        """Save that ``name``, a method of the Task API, is under way in the block.

        ``process`` is that of the method, None for one on the container.  The block may clear
        ``doing`` earlier, with the change that completes the operation.
        """
        subject = process or self
        subject.doing = name
        self.save()
        try:
            yield
        finally:
            if subject.doing:
                subject.doing = ""
                self.save()

    @contextmanager
    def start_of_exec(self, process: Process) -> Iterator[Callable[[], None]]:
        """Yield a function that saves that the Start of an exec is under way in the block.

        Call it directly before the runtime command: it is certain until then that the
        program has not run, and a replacement begins again.
        """

        def begin() -> None:
            process.prepares = False
            self.save()

        process.doing, process.prepares = "Start", True
        try:
            yield begin
        finally:
            process.prepares = False
            if process.doing:
                process.doing = ""
                self.save()

    def adopt(self, process: Process) -> None:
        """Deposit the pidfd of ``process``, which was just created, and is not reaped yet.

        It stays a zombie until its exit is recorded, or :meth:`forget` is called.
        """
        if process.child is not None and self._deposit.is_active:
            process.child.hold()
            self._held[process.id] = process.child
            self._deposit.put({self.pidfd_name(process.id): process.child.pidfd})

    def forget(self, exec_id: str) -> None:
        """Drop the pidfd of a process: its exit is saved, or it is not followed any more."""
        if (child := self._held.pop(exec_id, None)) is not None:
            child.release()
        self._deposit.drop(self.pidfd_name(exec_id))

    def pidfd_name(self, exec_id: str) -> str:
        """Return the name of the pidfd of a process in the deposit."""
        return f"pidfd/{self._id}/{exec_id}"

    def stdio_prefix(self, exec_id: str) -> str:
        """Return how the names of the fds of a process's stdio begin in the deposit."""
        return f"io/{self._id}/{exec_id}/"

    def note_deleted(self, exec_id: str, exit_: Exit) -> None:
        """Remember the exit of a deleted exec, and save."""
        if not self.is_active:
            return
        kept = list(self.deleted.items())[-_DELETED + 1 :]
        self.deleted = {**dict(kept), exec_id: exit_}  # another object, for the encoder
        self.save()

    def close(self) -> None:
        """Forget the state: the container is deleted.  A second call does nothing."""
        self.forget_posted()
        slot, self._slot = self._slot, None
        if slot is not None:
            self._deposit.drop(f"state/{self._id}")
            slot.close()

    def _encoded(self) -> bytes:
        if self._encoder is None:
            request = self._request.SerializeToString()
            constants = Constants(request, _fields(self._config), _fields(self._options))
            self._encoder = Encoder(constants)
        execs = self._execs
        snapshot = ContainerSnapshot(
            self._init.snapshot(),
            tuple([process.snapshot() for process in execs.values()]) if execs else (),
            self.doing,
            self.pending,
            self.deleted,
            self.group.directories,
            self.group.oom_count,
            self.existed,
        )
        return self._encoder.encode(snapshot)


def _fields(value: Config | Options) -> dict[str, Any]:
    """Return the fields of a dataclass, which are not copied as by ``asdict``."""
    return {one.name: getattr(value, one.name) for one in fields(value)}
