"""Publishes the events of a container, each with the fields that managers expect.

Source: containerd api/events/task.proto.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shim.api.events_pb2 import (
    TaskCheckpointed,
    TaskCreate,
    TaskDelete,
    TaskExecAdded,
    TaskExecStarted,
    TaskExit,
    TaskIO,
    TaskOOM,
    TaskPaused,
    TaskResumed,
    TaskStart,
)
from shim.counters import COUNTERS

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from shim.api.task_pb2 import CreateTaskRequest
    from shim.container.saved import SavedState
    from shim.events.source import Source
    from shim.exit import Exit


# Go's zero time, year 1, in seconds since 1970: the process did not exit.
ZERO_TIME = -62_135_596_800


@dataclass(frozen=True, slots=True)
class TaskEvents:
    """Publishes for the container ``id``.  Never waits and never raises.

    ``saved`` is the container's state, which is saved with each event: the caller has changed
    the state before, and a daemon that is killed at any moment publishes the event once.
    """

    id: str
    source: Source
    saved: SavedState | None = None

    def __post_init__(self) -> None:
        if self.saved is not None:
            self.source.before_forgetting(self.saved.forget_posted)

    def _publish(self, event: Message) -> None:
        if self.saved is None or not self.saved.is_active:
            self.source.publish(event)
            return
        self.saved.pending = self.source.seal(event)
        self.saved.save()
        self.saved.note_posted(in_journal=self.source.post(self.saved.pending))

    def resume(self, pending: bytes) -> None:
        """Publish the event ``pending`` of a saved state, unless that has been done."""
        if pending and not self.source.has(pending):
            self.source.post(pending)

    def created(self, request: CreateTaskRequest, pid: int) -> None:
        streams = TaskIO(
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
            terminal=request.terminal,
        )
        event = TaskCreate(
            container_id=self.id,
            bundle=request.bundle,
            rootfs=request.rootfs,
            io=streams,
            checkpoint=request.checkpoint,
            pid=pid,
        )
        self._publish(event)

    def started(self, pid: int) -> None:
        self._publish(TaskStart(container_id=self.id, pid=pid))

    def exec_added(self, exec_id: str) -> None:
        self._publish(TaskExecAdded(container_id=self.id, exec_id=exec_id))

    def exec_started(self, exec_id: str, pid: int) -> None:
        self._publish(TaskExecStarted(container_id=self.id, exec_id=exec_id, pid=pid))

    def paused(self) -> None:
        self._publish(TaskPaused(container_id=self.id))

    def resumed(self) -> None:
        self._publish(TaskResumed(container_id=self.id))

    def checkpointed(self, path: str) -> None:
        self._publish(TaskCheckpointed(container_id=self.id, checkpoint=path))

    def oom(self) -> None:
        self._publish(TaskOOM(container_id=self.id))

    def exited(self, exec_id: str, exit_: Exit) -> None:
        """Publish the exit of an exec, or that of the init process if ``exec_id`` is empty."""
        event = TaskExit(
            container_id=self.id,
            id=exec_id or self.id,
            pid=exit_.pid,
            exit_status=exit_.exit_status,
        )
        event.exited_at.FromNanoseconds(exit_.exited_at)
        self._publish(event)
        COUNTERS.exits += 1
        # The clock of both times may be set back.
        COUNTERS.exit_time += max(0, time.time_ns() - exit_.exited_at)

    def deleted(self, exit_: Exit) -> None:
        event = TaskDelete(container_id=self.id, pid=exit_.pid, exit_status=exit_.exit_status)
        if exit_.exited_at:
            event.exited_at.FromNanoseconds(exit_.exited_at)
        else:  # a process that was never started has no exit time
            event.exited_at.seconds = ZERO_TIME
        self._publish(event)
