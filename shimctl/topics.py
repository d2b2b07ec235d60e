"""The events of a shim as frozen dataclasses, one class for each topic.

    match event:
        case TaskExit(container_id=name, exit_status=status) if event.is_init:
            ...

The fields have the names of containerd's messages.  A message of an unknown type, and one
that cannot be decoded, becomes an :class:`UnknownEvent`, which has the message's bytes.

Units: times are UTC; None is an absent or invalid time.

Source: containerd api/events/task.proto and core/runtime/events.go (the topics).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime  # noqa: TC003 - the annotation of a dataclass
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from shim import names
from shim.api import events_pb2
from shimctl.values import Stdio, time_of

if TYPE_CHECKING:
    from shim.api.envelope_pb2 import Envelope
    from shim.api.mount_pb2 import Mount

_PACKAGE = "containerd.events"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event.  ``at`` is the time at which the shim made it."""

    at: datetime | None
    namespace: str
    topic: str

    @property
    def type(self) -> str:
        """The full name of the event's message."""
        return f"{_PACKAGE}.{type(self).__name__}"

    def as_dict(self) -> dict[str, Any]:
        """Return the event with all details of its topic below ``fields``, for JSON."""
        base = {"at": self.at, "namespace": self.namespace, "topic": self.topic}
        details = {
            name: _plain(getattr(self, name))
            for name in (field.name for field in fields(self))
            if name not in base and name != "type"
        }
        return base | {"type": self.type, "fields": details}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEvent(Event):
    """An event of the container ``container_id``; the base of all classes but UnknownEvent."""

    container_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCreate(TaskEvent):
    """``/tasks/create``: the container was created; ``pid`` is that of its init process."""

    bundle: str
    rootfs: tuple[Mount, ...]
    io: Stdio
    checkpoint: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStart(TaskEvent):
    """``/tasks/start``: the init process was started."""

    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskExit(TaskEvent):
    """``/tasks/exit``: a process exited.

    ``id`` is the container's id for the init process, else the id of the exec.
    ``exit_status`` is the exit code, or 128 + signal.
    """

    id: str
    pid: int
    exit_status: int
    exited_at: datetime | None

    @property
    def is_init(self) -> bool:
        """Whether the init process exited, which ends the container."""
        return self.id == self.container_id

    @property
    def exec_id(self) -> str:
        """The id of the exec, empty for the init process."""
        return "" if self.is_init else self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDelete(TaskEvent):
    """``/tasks/delete``: the container was deleted; the other fields are those of its exit."""

    id: str
    pid: int
    exit_status: int
    exited_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOOM(TaskEvent):
    """``/tasks/oom``: the kernel killed a process because the memory limit was reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskExecAdded(TaskEvent):
    """``/tasks/exec-added``: an exec was added; it does not run yet."""

    exec_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskExecStarted(TaskEvent):
    """``/tasks/exec-started``: an exec was started."""

    exec_id: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPaused(TaskEvent):
    """``/tasks/paused``: the container's processes are frozen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResumed(TaskEvent):
    """``/tasks/resumed``: the container's processes run again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCheckpointed(TaskEvent):
    """``/tasks/checkpointed``: a checkpoint was written to the directory ``checkpoint``."""

    checkpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownEvent(Event):
    """An event of a type that this version does not know, or that it cannot decode.

    ``type`` is the full name of the message, ``value`` its bytes.
    """

    type: str
    value: bytes


_KINDS: dict[str, type[TaskEvent]] = {
    f"{_PACKAGE}.{kind.__name__}": kind
    for kind in (
        *(TaskCreate, TaskStart, TaskExit, TaskDelete, TaskOOM, TaskExecAdded),
        *(TaskExecStarted, TaskPaused, TaskResumed, TaskCheckpointed),
    )
}


def event_of(envelope: Envelope) -> Event:
    """Decode an envelope into the event of its type."""
    base: dict[str, Any] = {
        "at": time_of(envelope.timestamp),
        "namespace": envelope.namespace,
        "topic": envelope.topic,
    }
    name, value = names.type_name(envelope.event.type_url), envelope.event.value
    if kind := _KINDS.get(name):
        try:
            message = getattr(events_pb2, kind.__name__).FromString(value)
        except DecodeError:
            pass
        else:
            details = (field.name for field in fields(kind) if field.name not in base)
            return kind(**base, **{name: _value(getattr(message, name)) for name in details})
    return UnknownEvent(**base, type=name, value=value)


def _value(found: Any) -> Any:
    if isinstance(found, Timestamp):
        return time_of(found)
    if isinstance(found, events_pb2.TaskIO):
        return Stdio(found.stdin, found.stdout, found.stderr, found.terminal)
    return found if isinstance(found, str | int) else tuple(found)


def _plain(value: object) -> object:
    """Return a value without a protobuf message or bytes in it."""
    if isinstance(value, tuple):
        return [
            {"type": m.type, "source": m.source, "target": m.target, "options": list(m.options)}
            for m in value
        ]
    return value.hex() if isinstance(value, bytes) else value
