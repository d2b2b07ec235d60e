"""The task events and the topic of each.

Source: containerd core/runtime/events.go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shim.api import events_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message

TOPICS: dict[type[Message], str] = {
    events_pb2.TaskCreate: "/tasks/create",
    events_pb2.TaskStart: "/tasks/start",
    events_pb2.TaskOOM: "/tasks/oom",
    events_pb2.TaskExit: "/tasks/exit",
    events_pb2.TaskDelete: "/tasks/delete",
    events_pb2.TaskExecAdded: "/tasks/exec-added",
    events_pb2.TaskExecStarted: "/tasks/exec-started",
    events_pb2.TaskPaused: "/tasks/paused",
    events_pb2.TaskResumed: "/tasks/resumed",
    events_pb2.TaskCheckpointed: "/tasks/checkpointed",
}


def topic_of(event: Message) -> str:
    """Return the topic of ``event``, which always begins with a slash."""
    return TOPICS[type(event)]
