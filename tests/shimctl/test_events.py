from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.timestamp_pb2 import Timestamp
from grpclib.exceptions import GRPCError

from shim.api import events_pb2
from shim.api.envelope_pb2 import Envelope
from shim.api.events_pb2 import TaskExit
from shim.api.forward_grpc import EventsStub
from shim.api.forward_pb2 import ForwardRequest
from shim.errors import ExistsError
from shim.linux import sockets
from shim.ttrpc.client import open_channel
from shimctl import topics
from shimctl.events import serve_events
from shimctl.topics import Event, event_of

if TYPE_CHECKING:
    from pathlib import Path

EXIT = Envelope(
    timestamp=Timestamp(seconds=1),
    namespace="ns",
    topic="/tasks/exit",
    event=AnyMessage(
        type_url="containerd.events.TaskExit",
        value=TaskExit(container_id="c", id="c", pid=7).SerializeToString(),
    ),
)


NO_TIME = TaskExit(container_id="c", exited_at=Timestamp(seconds=1 << 50))


async def test_an_event_is_acknowledged_once_it_was_handled(tmp_path: Path) -> None:
    seen: list[Event] = []

    async def handler(event: Event) -> None:
        if not seen:
            seen.append(event)
            raise OSError("the disk is full")
        seen.append(event)

    path = tmp_path / "events.sock"
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_events, path, handler))
        async with open_channel(await sockets.connect(f"unix://{path}")) as channel:
            stub = EventsStub(channel)
            with pytest.raises(GRPCError, match="disk is full"):
                await stub.Forward(ForwardRequest(envelope=EXIT))
            await stub.Forward(ForwardRequest(envelope=EXIT))
        nursery.cancel_scope.cancel()
    assert [event.topic for event in seen] == ["/tasks/exit"] * 2
    assert not path.exists()


async def test_two_cannot_listen_in_one_place(tmp_path: Path) -> None:
    async def handler(event: Event) -> None:
        raise AssertionError(event)

    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_events, tmp_path / "s", handler))
        with pytest.raises(ExistsError):
            await serve_events(tmp_path / "s", handler)
        assert (tmp_path / "s").exists()
        nursery.cancel_scope.cancel()


def test_an_exit_status_of_zero_is_told() -> None:
    event = event_of(EXIT)
    assert event.at is not None
    assert event.at.timestamp() == 1
    assert isinstance(event, topics.TaskExit)
    assert (event.type, event.exit_status) == ("containerd.events.TaskExit", 0)
    assert event.as_dict()["fields"]["exit_status"] == 0


@pytest.mark.parametrize(
    ("type_url", "value"),
    [
        ("", b""),
        ("containerd.events.Unheard", b"x"),
        ("containerd.events.DESCRIPTOR", b"x"),
        ("containerd.events.TaskExit", b"\xff"),
    ],
)
def test_an_event_that_cannot_be_decoded_keeps_its_bytes(type_url: str, value: bytes) -> None:
    envelope = Envelope(topic="/t", event=AnyMessage(type_url=type_url, value=value))
    event = event_of(envelope)
    assert isinstance(event, topics.UnknownEvent)
    assert (event.topic, event.type, event.value) == ("/t", type_url, value)


def test_an_invalid_time_in_an_event_is_none() -> None:
    value = AnyMessage(type_url="containerd.events.TaskExit", value=NO_TIME.SerializeToString())
    event = event_of(Envelope(topic="/t", event=value))
    assert isinstance(event, topics.TaskExit)
    assert (event.container_id, event.exited_at) == ("c", None)


KINDS = [name for name in events_pb2.DESCRIPTOR.message_types_by_name if name != "TaskIO"]


@pytest.mark.parametrize("name", KINDS)
def test_each_event_of_containerd_has_a_class_with_the_same_fields(name: str) -> None:
    kind, message = getattr(topics, name), getattr(events_pb2, name)
    base = {field.name for field in fields(Event)}
    ours = [field.name for field in fields(kind) if field.name not in base]
    assert sorted(ours) == sorted(field.name for field in message.DESCRIPTOR.fields)
    full = message(container_id="c")
    if name == "TaskCreate":
        full = message(container_id="c", io={"stdout": "o"}, rootfs=[{"type": "bind"}])
    event = event_of(
        Envelope(
            event=AnyMessage(type_url=f"containerd.events.{name}", value=full.SerializeToString())
        )
    )
    assert type(event) is kind
    assert isinstance(event, topics.TaskEvent)
    assert event.container_id == "c"
    if isinstance(event, topics.TaskCreate):
        assert (event.io.stdout, event.rootfs[0].type) == ("o", "bind")
        assert event.as_dict()["fields"]["rootfs"][0]["type"] == "bind"


def test_an_event_whose_time_is_none_is_still_an_event() -> None:
    event = event_of(Envelope(topic="/t", timestamp=Timestamp(seconds=1 << 50)))
    assert (event.topic, event.at) == ("/t", None)
