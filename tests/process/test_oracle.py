"""The oracle itself: it lets a right life pass, and catches each thing that can go wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from shim.api import events_pb2 as ev
from shim.api.envelope_pb2 import Envelope
from shim.events.topics import topic_of
from tests.process.oracle import Oracle, OrderError

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

ENDED = Timestamp(seconds=50)


def envelope(event: Message, at: int = 100, **fields: Any) -> Envelope:
    right = Envelope(timestamp=Timestamp(seconds=at), namespace="ns", topic=topic_of(event))
    right.event.type_url = event.DESCRIPTOR.full_name
    right.event.value = event.SerializeToString()
    right.MergeFrom(Envelope(**fields))
    return right


CREATE = ev.TaskCreate(container_id="c", pid=7)
START = ev.TaskStart(container_id="c", pid=7)
EXIT = ev.TaskExit(container_id="c", id="c", pid=7, exit_status=3, exited_at=ENDED)
DELETE = ev.TaskDelete(container_id="c", pid=7, exit_status=3, exited_at=ENDED)
ADDED = ev.TaskExecAdded(container_id="c", exec_id="e")
STARTED = ev.TaskExecStarted(container_id="c", exec_id="e", pid=8)
EXEC_EXIT = ev.TaskExit(container_id="c", id="e", pid=8, exit_status=4, exited_at=ENDED)
OOM = ev.TaskOOM(container_id="c")
PAUSED = ev.TaskPaused(container_id="c")
LIFE = [CREATE, START, ADDED, STARTED, EXEC_EXIT, OOM, EXIT, DELETE]


def like(event: Message, **fields: Any) -> Message:
    changed = type(event)()
    changed.CopyFrom(event)
    changed.MergeFrom(type(event)(**fields))
    return changed


def told(*events: Message) -> Oracle:
    oracle = Oracle("ns")
    for event in events:
        oracle.tell(envelope(event))
    return oracle


RIGHT: dict[str, list[Message]] = {
    "a whole life": LIFE,
    "dead before its start": [CREATE, EXIT, DELETE],
    "an exec that never ran": [CREATE, START, ADDED, EXIT, DELETE],
    "an exec's id used again": [*LIFE[:5], ADDED, STARTED, EXEC_EXIT, EXIT, DELETE],
    "an exec added again whose start failed": [CREATE, ADDED, ADDED, EXIT, DELETE],
    "restored": [ev.TaskCreate(container_id="c"), START, EXIT, DELETE],
    "never restored": [ev.TaskCreate(container_id="c"), ev.TaskDelete(container_id="c")],
}


@pytest.mark.parametrize("events", RIGHT.values(), ids=RIGHT.keys())
def test_a_right_life_passes(events: list[Message]) -> None:
    told(*events).finish()


WRONG: dict[str, list[Message]] = {
    "a second create": [CREATE, CREATE],
    "no create before": [START],
    "no exec-added before": [CREATE, STARTED],
    "no exec-started before": [CREATE, ADDED, EXEC_EXIT],
    "while one of its name runs": [CREATE, ADDED, STARTED, ADDED],
    "a second start": [CREATE, START, START],
    "a start without a pid": [CREATE, ev.TaskStart(container_id="c")],
    "another pid than 7": [CREATE, like(START, pid=9)],
    "another pid than 8": [CREATE, ADDED, STARTED, like(EXEC_EXIT, pid=9)],
    "init ends before its execs": [CREATE, START, ADDED, STARTED, EXIT],
    "after the exit of init": [CREATE, START, EXIT, OOM],
    "exit of init: TaskStart": [CREATE, EXIT, START],
    "exit of init: TaskPaused": [CREATE, START, EXIT, PAUSED],
    "exit of init: TaskExit": [CREATE, START, EXIT, EXIT],
    "exit of init: TaskExecAdded": [CREATE, START, EXIT, ADDED],
    "a second exit": [CREATE, ADDED, STARTED, EXEC_EXIT, EXEC_EXIT],
    "a delete of an exec": [*LIFE[:7], like(DELETE, id="e")],
    "no exit before": [CREATE, START, DELETE],
    "an event after delete": [*LIFE, PAUSED],
    "another end": [*LIFE[:7], like(DELETE, exit_status=9)],
    "another end: ": [*LIFE[:7], like(DELETE, exited_at=Timestamp(seconds=51))],
    "a wrong time": [CREATE, ev.TaskExit(container_id="c", id="c", pid=7)],
    "a wrong time: ": [CREATE, like(EXIT, exited_at=Timestamp(seconds=101))],
    "another pid than 7: ": [CREATE, START, like(EXIT, pid=9)],
    "another pid than 7: TaskDelete": [*LIFE[:7], like(DELETE, pid=9)],
}


@pytest.mark.parametrize(("sentence", "events"), WRONG.items(), ids=WRONG.keys())
def test_a_wrong_life_is_caught_at_its_last_event(sentence: str, events: list[Message]) -> None:
    oracle = told(*events[:-1])
    with pytest.raises(OrderError, match=sentence):
        oracle.tell(envelope(events[-1]))


ENVELOPES = {
    "a foreign namespace": envelope(CREATE, namespace="other"),
    "a topic without a slash": envelope(CREATE, topic="tasks/create"),
    "an unknown topic": envelope(CREATE, topic="/tasks/birth"),
    "not the topic's type": envelope(CREATE, topic="/tasks/start"),
    "no time": envelope(CREATE, at=0),
}


@pytest.mark.parametrize(("sentence", "wrong"), ENVELOPES.items(), ids=ENVELOPES.keys())
def test_an_envelope_containerd_would_refuse_is_caught(sentence: str, wrong: Envelope) -> None:
    with pytest.raises(OrderError, match=sentence):
        Oracle("ns").tell(wrong)


def test_a_namespace_no_manager_could_have_is_caught() -> None:
    with pytest.raises(OrderError, match="an invalid namespace"):
        Oracle("n/s").tell(envelope(CREATE, namespace="n/s", topic="/tasks/create"))


ANSWERS: dict[str, Callable[[Oracle], None]] = {
    "Start answered 9": lambda oracle: oracle.started("c", "", 9, 10**12),
    "after Start's answer": lambda oracle: oracle.started("c", "e", 8, 99 * 10**9),
    "Wait answered": lambda oracle: oracle.ended("Wait", "c", "", 9, ENDED),
    "Wait answered ": lambda oracle: oracle.ended("Wait", "c", "e", 4, Timestamp(seconds=51)),
    "Delete answered": lambda oracle: oracle.ended("Delete", "c", "", 3, ENDED, pid=8),
    "Delete answered ": lambda oracle: oracle.ended("Delete", "c", "x", 3, ENDED, pid=7),
}


@pytest.mark.parametrize(("sentence", "answer"), ANSWERS.items(), ids=ANSWERS.keys())
def test_an_answer_that_is_not_what_was_told_is_caught(
    sentence: str, answer: Callable[[Oracle], None]
) -> None:
    oracle = told(*LIFE)
    answer(oracle)
    with pytest.raises(OrderError, match=sentence):
        oracle.finish()


def test_right_answers_pass() -> None:
    oracle = told(*LIFE)
    oracle.started("c", "", 7, 100 * 10**9)
    oracle.started("c", "e", 8, 101 * 10**9)
    oracle.ended("Wait", "c", "e", 4, ENDED)
    oracle.ended("Delete", "c", "e", 4, ENDED, pid=8)
    oracle.ended("Wait", "c", "", 3, ENDED)
    oracle.ended("Delete", "c", "", 3, ENDED, pid=7)
    oracle.finish()
    assert [life.pid for life in oracle.lives("c", "e")] == [8]


def test_what_never_came_is_caught() -> None:
    with pytest.raises(OrderError, match="no delete came"):
        told(*LIFE[:-1]).finish()
    with pytest.raises(OrderError, match="no exit came"):
        told(CREATE, START).finish()
    told(CREATE, START).finish(deleted=False)
