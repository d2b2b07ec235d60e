"""The fields and the topic of each event, and the fields of an envelope.

Source: containerd api/events/task.proto, core/runtime/events.go,
api/services/ttrpc/events/v1/events.proto, core/events/exchange validateEnvelope.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
import trio
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api import events_pb2
from shim.api.envelope_pb2 import Envelope
from shim.api.events_pb2 import TaskCreate, TaskDelete, TaskExit, TaskIO, TaskStart
from shim.api.forward_pb2 import ForwardRequest
from shim.api.mount_pb2 import Mount
from shim.api.task_pb2 import CreateTaskRequest
from shim.container.task_events import TaskEvents
from shim.events.publisher import open_publisher
from shim.exit import NEVER_STARTED, Exit
from shim.ttrpc.server import handlers_of, unary
from tests.events.delivering import Manager, deliver_two, serving

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from google.protobuf.message import Message

FIELDS: dict[str, tuple[str, str]] = {
    "TaskCreate": ("/tasks/create", "container_id bundle rootfs io checkpoint pid"),
    "TaskStart": ("/tasks/start", "container_id pid"),
    "TaskOOM": ("/tasks/oom", "container_id"),
    "TaskExit": ("/tasks/exit", "container_id id pid exit_status exited_at"),
    "TaskDelete": ("/tasks/delete", "container_id pid exit_status exited_at id"),
    "TaskExecAdded": ("/tasks/exec-added", "container_id exec_id"),
    "TaskExecStarted": ("/tasks/exec-started", "container_id exec_id pid"),
    "TaskPaused": ("/tasks/paused", "container_id"),
    "TaskResumed": ("/tasks/resumed", "container_id"),
    "TaskCheckpointed": ("/tasks/checkpointed", "container_id checkpoint"),
}


def numbers(message: type[Message]) -> dict[str, int]:
    return {field.name: field.number for field in message.DESCRIPTOR.fields}


def in_order(names: str) -> dict[str, int]:
    return {name: number for number, name in enumerate(names.split(), 1)}


@pytest.mark.parametrize("name", FIELDS)
async def test_an_event_goes_out_under_its_topic_and_its_bare_name(
    tmp_path: Path, name: str
) -> None:
    topic, fields = FIELDS[name]
    kind: type[Message] = getattr(events_pb2, name)
    assert numbers(kind) == in_order(fields)
    manager = Manager()
    path = tmp_path / "events"
    async with serving(path, manager), open_publisher(str(path), "ns") as publisher:
        publisher.open_source("").publish(kind(container_id="c1"))
        with trio.fail_after(20):
            await publisher.flush()
    [envelope] = manager.got
    assert (envelope.topic, envelope.event.type_url) == (topic, f"containerd.events.{name}")
    assert kind.FromString(envelope.event.value) == kind(container_id="c1")


def test_an_envelope_has_the_numbers_and_the_method_that_containerd_has() -> None:
    assert numbers(Envelope) == in_order("timestamp namespace topic event")
    assert numbers(ForwardRequest) == in_order("envelope")
    assert numbers(TaskIO) == in_order("stdin stdout stderr terminal")
    assert numbers(Mount) == in_order("type source target options")
    service = "containerd.services.events.ttrpc.v1.Events"
    assert list(handlers_of(Manager())) == [f"/{service}/Forward"]


class Deaf(Manager):
    """Receives every event twice, since it fails the first call of each."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[bytes] = []

    @unary
    async def Forward(self, request: ForwardRequest) -> Empty:
        self.heard.append(request.SerializeToString(deterministic=True))
        if len(self.heard) % 2:
            raise GRPCError(Status.UNAVAILABLE, "the answer is lost")
        return Empty()


async def test_what_is_sent_again_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    manager = Deaf()
    path = tmp_path / "events"
    await deliver_two(path, manager)
    assert manager.heard[0::2] == manager.heard[1::2]
    assert len(manager.heard) == 4


async def test_the_time_of_an_event_is_when_it_happened_and_not_when_it_arrives(
    tmp_path: Path,
) -> None:
    manager = Manager()
    path = tmp_path / "events"
    async with open_publisher(str(path), "ns") as publisher:
        before = time.time_ns()
        publisher.open_source("").publish(TaskStart(pid=1))
        after = time.time_ns()
        async with serving(path, manager):
            with trio.fail_after(20):
                await publisher.flush()
    assert before <= manager.got[0].timestamp.ToNanoseconds() <= after


class Recorder:
    waiting = 0

    def __init__(self) -> None:
        self.events: list[Any] = []

    def publish(self, event: Message) -> None:
        self.events.append(event)

    def seal(self, event: Message) -> bytes:
        raise NotImplementedError

    def post(self, envelope: bytes) -> bool:
        raise NotImplementedError

    def before_forgetting(self, call: Callable[[], None]) -> None:
        raise NotImplementedError

    def has(self, envelope: bytes) -> bool:
        raise NotImplementedError

    def close(self) -> None:
        pass


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def test_the_exit_of_init_bears_the_containers_id_and_one_of_an_exec_its_own(
    recorder: Recorder,
) -> None:
    events = TaskEvents("c1", recorder)
    events.exited("", Exit(7, 137, 1_500_000_000))
    events.exited("e1", Exit(8, 3, 2_000_000_001))
    init, exec_ = (TaskExit(container_id="c1", id=id_) for id_ in ("c1", "e1"))
    init.pid, init.exit_status = 7, 137
    init.exited_at.FromNanoseconds(1_500_000_000)
    exec_.pid, exec_.exit_status = 8, 3
    exec_.exited_at.FromNanoseconds(2_000_000_001)
    assert recorder.events == [init, exec_]


def test_a_create_says_what_it_was_asked_for(recorder: Recorder) -> None:
    request = CreateTaskRequest(
        id="c1",
        bundle="/b",
        rootfs=[Mount(type="overlay", options=["lowerdir=/l"])],
        terminal=True,
        stdin="i",
        stdout="o",
        stderr="e",
        checkpoint="/image",
    )
    TaskEvents("c1", recorder).created(request, 7)
    [event] = recorder.events
    assert event == TaskCreate(
        container_id="c1",
        bundle="/b",
        rootfs=request.rootfs,
        io=TaskIO(stdin="i", stdout="o", stderr="e", terminal=True),
        checkpoint="/image",
        pid=7,
    )


def test_the_end_of_what_never_ran_has_gos_zero_time(recorder: Recorder) -> None:
    TaskEvents("c1", recorder).deleted(NEVER_STARTED)
    zero = Timestamp(seconds=-62_135_596_800)  # 0001-01-01T00:00:00Z
    assert recorder.events == [TaskDelete(container_id="c1", exited_at=zero)]
