"""The events that a manager may receive, and their order: checked event by event.

Feed :class:`Oracle` every envelope in the order of its arrival, and what Start,
Wait and Delete answered; it raises at the first thing that cannot be true.
Nothing here knows a shim, a socket or a clock.

An envelope delivered twice is an error here: in the tests no acknowledgement gets lost.

Source: containerd core/events/exchange validateEnvelope; api/events/task.proto;
the comments on order in containerd-shim-runc-v2 task/service.go.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from shim.api import events_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

    from shim.api.envelope_pb2 import Envelope

_TOPICS: dict[str, type[Message]] = {
    "/tasks/create": events_pb2.TaskCreate,
    "/tasks/start": events_pb2.TaskStart,
    "/tasks/oom": events_pb2.TaskOOM,
    "/tasks/exit": events_pb2.TaskExit,
    "/tasks/delete": events_pb2.TaskDelete,
    "/tasks/exec-added": events_pb2.TaskExecAdded,
    "/tasks/exec-started": events_pb2.TaskExecStarted,
    "/tasks/paused": events_pb2.TaskPaused,
    "/tasks/resumed": events_pb2.TaskResumed,
    "/tasks/checkpointed": events_pb2.TaskCheckpointed,
}
# containerd pkg/identifiers, which every namespace has to pass.
_IDENTIFIER = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")

Key: TypeAlias = tuple[str, str]


class OrderError(AssertionError):
    """An event or a reply is false, too early or too late."""


@dataclass
class Life:
    """One process, as the events describe it.  Times are in ns; 0: unknown."""

    pid: int = 0
    started_at: int = 0
    exit: events_pb2.TaskExit | None = None


@dataclass
class _Container:
    init: Life
    execs: dict[str, Life] = field(default_factory=dict)
    deleted: events_pb2.TaskDelete | None = None


class Oracle:
    """Judges the events of one namespace.  Ask :meth:`finish` when all is over."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._containers: dict[str, _Container] = {}
        # Every life there was: an exec's id may be used again after it.
        self._lives: dict[Key, list[Life]] = {}
        self._started: list[tuple[Key, int, int]] = []
        self._ended: list[tuple[str, Key, int, int, int]] = []

    # -- events ---------------------------------------------------------------

    def tell(self, envelope: Envelope) -> None:
        """:raises OrderError: it should not have come, or not now."""
        event = self._opened(envelope)
        id_ = event.container_id
        if isinstance(event, events_pb2.TaskCreate):
            _demand(id_ not in self._containers, "a second create", event)
            self._containers[id_] = _Container(self._live((id_, ""), event.pid))
            return
        container = self._containers.get(id_)
        _demand(container is not None, "no create before", event)
        assert container is not None
        _demand(container.deleted is None, "an event after delete", event)
        if isinstance(event, events_pb2.TaskDelete):
            self._delete(container, event)
            return
        _demand(container.init.exit is None, "an event after the exit of init", event)
        match event:
            case events_pb2.TaskStart():
                self._start(container.init, event, envelope)
            case events_pb2.TaskExecAdded():
                old = container.execs.get(event.exec_id)
                over = old is None or not old.started_at or old.exit is not None
                _demand(over, "an exec is added while one of its name runs", event)
                container.execs[event.exec_id] = self._live((id_, event.exec_id), 0)
            case events_pb2.TaskExecStarted():
                _demand(event.exec_id in container.execs, "no exec-added before", event)
                self._start(container.execs[event.exec_id], event, envelope)
            case events_pb2.TaskExit():
                self._exit(container, event, envelope)

    def _opened(self, envelope: Envelope) -> Any:
        _demand(envelope.namespace == self._namespace, "a foreign namespace", envelope)
        _demand(_IDENTIFIER.fullmatch(envelope.namespace), "an invalid namespace", envelope)
        _demand(envelope.topic.startswith("/"), "a topic without a slash", envelope)
        _demand(envelope.topic in _TOPICS, "an unknown topic", envelope)
        _demand(_ns(envelope.timestamp) > 0, "no time", envelope)
        type_ = _TOPICS[envelope.topic]
        _demand(
            envelope.event.type_url == type_.DESCRIPTOR.full_name, "not the topic's type", envelope
        )
        return type_.FromString(envelope.event.value)

    def _live(self, key: Key, pid: int) -> Life:
        life = Life(pid)
        self._lives.setdefault(key, []).append(life)
        return life

    @staticmethod
    def _start(life: Life, event: Any, envelope: Envelope) -> None:
        _demand(not life.started_at, "a second start", event)
        _demand(event.pid, "a start without a pid", event)
        # A restored container has no pid before its start.
        _demand(life.pid in (0, event.pid), f"another pid than {life.pid}", event)
        life.pid, life.started_at = event.pid, _ns(envelope.timestamp)

    @staticmethod
    def _exit(container: _Container, event: events_pb2.TaskExit, envelope: Envelope) -> None:
        if event.id == event.container_id:
            life = container.init
            left = [name for name, one in container.execs.items() if one.started_at > 0]
            left = [name for name in left if container.execs[name].exit is None]
            _demand(not left, f"init ends before its execs {left}", event)
        else:
            _demand(event.id in container.execs, "no exec-added before", event)
            life = container.execs[event.id]
            _demand(life.started_at, "no exec-started before", event)
        _demand(life.exit is None, "a second exit", event)
        _demand(life.pid == event.pid, f"another pid than {life.pid}", event)
        _demand(0 < _ns(event.exited_at) <= _ns(envelope.timestamp), "a wrong time", event)
        life.exit = event

    @staticmethod
    def _delete(container: _Container, event: events_pb2.TaskDelete) -> None:
        init = container.init
        _demand(event.id in ("", event.container_id), "a delete of an exec", event)
        _demand(init.exit is not None or not init.pid, "no exit before", event)
        _demand(init.pid == event.pid, f"another pid than {init.pid}", event)
        if init.exit is not None:
            told = (init.exit.exit_status, init.exit.exited_at)
            _demand(told == (event.exit_status, event.exited_at), f"another end: {told}", event)
        container.deleted = event

    # -- replies -------------------------------------------------------

    def started(self, id_: str, exec_id: str, pid: int, at: int) -> None:
        """Start answered with ``pid``; the caller had the answer ``at`` ns since the epoch."""
        self._started.append(((id_, exec_id), pid, at))

    def ended(
        self, verb: str, id_: str, exec_id: str, status: int, exited_at: Timestamp, pid: int = 0
    ) -> None:
        """Wait or Delete answered.  ``pid`` is 0 where the answer has none."""
        self._ended.append((verb, (id_, exec_id), status, _ns(exited_at), pid))

    def finish(self, *, deleted: bool = True) -> None:
        """Hold the answers against the events; with ``deleted``, every container is gone.

        :raises OrderError: they differ, or an event is missing.
        """
        for key, pid, at in self._started:
            lives = [one for one in self._lives.get(key, []) if one.pid == pid and one.started_at]
            _demand(lives, f"Start answered {pid}, and no event did", key)
            _demand(lives[0].started_at <= at, "the start was told after Start's answer", key)
        for verb, key, status, at, pid in self._ended:
            exits = [one.exit for one in self._lives.get(key, []) if one.exit is not None]
            told = [(one.exit_status, _ns(one.exited_at), pid and one.pid) for one in exits]
            _demand((status, at, pid) in told, f"{verb} answered {(status, at, pid)}", told or key)
        for key, lives in self._lives.items():
            started = [one for one in lives if one.started_at]
            _demand(
                not deleted or all(one.exit is not None for one in started), "no exit came", key
            )
        for id_, container in self._containers.items():
            _demand(not deleted or container.deleted is not None, "no delete came", id_)

    def lives(self, id_: str, exec_id: str = "") -> list[Life]:
        """Return the facts about a process, once for each use of its id."""
        return self._lives.get((id_, exec_id), [])


def _demand(truth: object, sentence: str, what: object) -> None:
    if not truth:
        name = type(what).__name__
        raise OrderError(f"{sentence}: {name} {str(what).strip()!r}")


def _ns(stamp: Timestamp) -> int:
    return int(stamp.seconds) * 10**9 + int(stamp.nanos)
