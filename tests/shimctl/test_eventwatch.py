"""The watchers of events in one process, with shims that are clients of their socket."""

from __future__ import annotations

import resource
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from shim.api.containerevents_pb2 import ContainerCreate
from shim.api.envelope_pb2 import Envelope
from shim.api.events_pb2 import TaskExit
from shim.api.forward_grpc import EventsStub
from shim.api.forward_pb2 import ForwardRequest
from shim.errors import ExistsError, InvalidError, UnavailableError
from shim.events.encoding import DONE, encode
from shim.linux.sockets import connect
from shim.scope import background
from shim.ttrpc.calls import ConnectionLostError
from shim.ttrpc.client import open_channel
from shimctl.events import listening
from shimctl.standalone.eventfilter import Filter, parse_filters, text_line
from shimctl.standalone.eventlog import EventLog
from shimctl.standalone.eventwatch import watch
from shimctl.standalone.logfiles import Log
from shimctl.standalone.published import Published, decode, published

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

PATIENCE = 20  # s
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def envelope(second: int, name: str = "c1", namespace: str = "default") -> Envelope:
    message = TaskExit(container_id=name, id=name, pid=second, exit_status=7)
    at = Timestamp()
    at.FromDatetime(NOW + timedelta(seconds=second))
    packed = AnyMessage(type_url="containerd.events.TaskExit", value=message.SerializeToString())
    return Envelope(timestamp=at, namespace=namespace, topic="/tasks/exit", event=packed)


def event(second: int, name: str = "c1", namespace: str = "default") -> Published:
    return published(envelope(second, name, namespace))


# One event


def test_an_event_survives_its_line() -> None:
    one = event(1)
    assert (one.container, one.fields["exit_status"], one.fields["pid"]) == ("c1", 7, 1)
    assert decode(one.encode()) == one
    unknown = published(Envelope(topic="/x", event=AnyMessage(type_url="a.B", value=b"\xff")))
    assert (unknown.fields, unknown.at, unknown.container) == ({}, None, "")
    assert decode(unknown.encode()) == unknown


def test_events_of_containerd_itself_are_decoded() -> None:
    value = ContainerCreate(id="c1", image="busybox").SerializeToString()
    packed = AnyMessage(type_url="containerd.events.ContainerCreate", value=value)
    one = published(Envelope(topic="/containers/create", event=packed))
    assert (one.fields, one.container) == ({"id": "c1", "image": "busybox"}, "c1")


@given(st.binary())
def test_no_line_is_an_error(line: bytes) -> None:
    decode(line)


def test_the_text_of_an_event_has_no_python_in_it() -> None:
    one = Published(NOW, "ns", "/t", "T", {"a": True, "b": [{"x": None}], "c": "", "d": "e\u00e9"})
    assert text_line(one) == '2026-11-24T12:00:00.000Z ns /t a=true b=[{"x": null}] d=e\u00e9'
    assert text_line(published(Envelope(namespace="n", topic="/t"))) == "- n /t"


@pytest.mark.parametrize(
    ("texts", "seconds"),
    [
        ([], [0, 1, 2, 3]),
        (["container=c1"], [0, 2, 3]),
        (["container=c"], [0, 1, 2, 3]),
        (["event=exit"], [0, 1, 2, 3]),
        (["event=/tasks/exit"], [0, 1, 2, 3]),
        (["event=start"], []),
        (["event=start", "event=exit", "container=c2"], [1]),
        (["namespace=other"], [3]),
        (["image=busybox"], []),
    ],
)
def test_filters_of_one_key_are_alternatives(texts: list[str], seconds: list[int]) -> None:
    events = [event(0), event(1, "c2"), event(2), event(3, namespace="other")]
    wanted = Filter(wanted=parse_filters(texts))
    assert [one for one in events if wanted.matches(one)] == [events[n] for n in seconds]
    at = [NOW + timedelta(seconds=second) for second in (1, 2)]
    wanted = Filter(namespace="default", since=at[0], until=at[1])
    assert [one for one in events if wanted.matches(one)] == events[1:3]


@pytest.mark.parametrize("text", ["exit", "event", "event=", "label=x", "=x", ""])
def test_what_is_no_filter_names_the_keys(text: str) -> None:
    with pytest.raises(InvalidError, match="container, event, namespace, image"):
        parse_filters([text])


# The file


def lines_of(path: Path) -> list[Published | None]:
    with Log(path, rotated=True) as log:
        return [decode(line) for line in log.lines()]


def test_a_repeated_event_is_kept_once_also_by_the_next_receiver(tmp_path: Path) -> None:
    path = tmp_path / "events.log"
    for _ in range(2):
        log = EventLog(path)
        for second in (1, 1, 2):
            log.append(event(second))
        log.close()
    assert lines_of(path) == [event(1), event(2)]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_line_that_was_cut_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "events.log"
    path.write_bytes(event(1).encode() + b"\n" + event(2).encode()[:30])
    log = EventLog(path)
    log.append(event(2))
    log.close()
    assert [one for one in lines_of(path) if one] == [event(1), event(2)]


def test_the_file_keeps_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "events.log"
    log = EventLog(path, limit=2000)
    events = [event(second) for second in range(50)]
    for one in events:
        log.append(one)
    log.close()
    kept = lines_of(path)
    assert 2000 / len(events[0].encode()) - 1 <= len(kept) < 50
    assert kept == events[-len(kept) :]
    assert all(file.stat().st_size <= 2000 for file in tmp_path.iterdir())


# Watchers


class Watcher:
    def __init__(self) -> None:
        self.seen: list[Published] = []
        self.problems: list[str] = []

    async def take(self, one: Published) -> None:
        await trio.lowlevel.checkpoint()
        self.seen.append(one)

    async def run(self, wanted: Filter | None = None) -> None:
        await watch(wanted or Filter(), self.take, self.problems.append)

    async def has(self, *events: Published) -> None:
        with trio.fail_after(PATIENCE):
            while len(self.seen) < len(events):
                await trio.sleep(0.01)
        assert self.seen == list(events)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have a state directory, and no containerd."""
    state = tmp_path / "state"
    monkeypatch.setenv("SHIMCTL_STATE", str(state))
    monkeypatch.setattr("shimctl.directories.STATES", (str(tmp_path / "containerd"),))
    for name in ("CONTAINERD_STATE", "CONTAINERD_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return state


@asynccontextmanager
async def connected(state: Path) -> AsyncIterator[EventsStub]:
    """Connect as a shim does, once a watcher receives."""
    with trio.fail_after(PATIENCE):
        while True:
            try:
                stream = await connect(f"unix://{state}/events.sock", PATIENCE)
            except UnavailableError:
                await trio.sleep(0.01)
                continue
            break
    async with open_channel(stream) as channel:
        yield EventsStub(channel)


async def send(stub: EventsStub, *seconds: int) -> None:
    for second in seconds:
        await stub.Forward(ForwardRequest(envelope=envelope(second)), timeout=PATIENCE)


async def test_all_watchers_see_all_events_and_the_next_one_receives(state: Path) -> None:
    one, two, three = Watcher(), Watcher(), Watcher()
    async with background(two.run) as nursery:
        async with background(one.run, three.run):
            async with connected(state) as stub:
                await send(stub, 1, 2)
            for watcher in (one, two, three):
                await watcher.has(event(1), event(2))
        late = Watcher()
        nursery.start_soon(late.run)
        async with connected(state) as stub:
            await send(stub, 2, 3)  # the acknowledgement of 2 was lost
            await two.has(event(1), event(2), event(3))
        with trio.fail_after(PATIENCE):
            while event(3) not in late.seen:
                await trio.sleep(0.01)
    assert not one.problems


async def test_an_embedding_program_that_receives_is_named(state: Path) -> None:
    state.mkdir(mode=0o700)
    with (
        listening(state / "events.sock"),
        pytest.RaisesGroup(
            pytest.RaisesExc(ExistsError, match="another program receives the events on"),
            allow_unwrapped=True,
            flatten_subgroups=True,
        ),
    ):
        await Watcher().run()


async def test_an_event_that_cannot_be_kept_is_not_acknowledged(state: Path) -> None:
    acknowledged = []
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def forward() -> None:
        async with connected(state) as stub:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
            with suppress(ConnectionLostError):
                await send(stub, 1)
                acknowledged.append(1)

    try:
        with pytest.RaisesGroup(
            pytest.RaisesExc(UnavailableError, match=r"cannot keep the events .* No space left"),
            allow_unwrapped=True,
            flatten_subgroups=True,
        ):
            async with background(forward):
                await Watcher().run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not acknowledged


def journal(bundle: Path, *records: bytes) -> None:
    bundle.mkdir(parents=True)
    (bundle / "events.journal").write_bytes(b"".join(records))


async def test_past_events_come_in_order_and_once(state: Path, tmp_path: Path) -> None:
    def record(second: int, *, done: bool) -> bytes:
        data = encode(envelope(second).SerializeToString())
        return DONE + data[len(DONE) :] if done else data

    journal(state / "default/c1", record(1, done=True), b"damage", record(4, done=False))
    task = "io.containerd.runtime.v2.task/k8s.io"
    journal(tmp_path / "containerd" / task / "c2", record(2, done=True))
    log = EventLog(state / "events.log")
    for second in (3, 1):
        log.append(event(second))
    log.close()
    past = Watcher()
    until = NOW + timedelta(seconds=10)
    await past.run(Filter(since=NOW, until=until))
    assert past.seen == [event(second) for second in (1, 2, 3, 4)]
    part = Watcher()
    await part.run(Filter(since=NOW + timedelta(seconds=3), until=until))
    assert part.seen == [event(3), event(4)]
    live = Watcher()
    async with background(partial(live.run, Filter(since=NOW + timedelta(seconds=3)))):
        async with connected(state) as stub:
            await send(stub, 4, 5)  # 4 was in the journal without acknowledgement
        await live.has(event(3), event(4), event(5))


async def test_a_watch_ends_at_its_time(state: Path) -> None:
    watcher = Watcher()
    until = datetime.now(UTC) + timedelta(seconds=0.3)
    with trio.fail_after(PATIENCE):
        await watcher.run(Filter(until=until))
    assert datetime.now(UTC) > until
    assert not (state / "events.sock").exists()
