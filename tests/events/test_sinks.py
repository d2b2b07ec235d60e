"""Managers that misbehave: they hang, lie, hang up, or talk without end.

Each comes to reason in the end, and then has every event, in order.
"""

from __future__ import annotations

import resource
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from google.protobuf.empty_pb2 import Empty

from shim.events import forwarding
from shim.events import publisher as publisher_module
from shim.linux.sockets import listen
from shim.ttrpc import wire_pb2
from shim.ttrpc.frames import Frame, Kind
from tests.events.delivering import Manager, flush, publish, publishing, serving, waiting_count

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Behaviour = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def behaving(path: Path, behave: Behaviour) -> AsyncIterator[list[int]]:
    """Listen, and treat each caller so; the list has an entry for each."""
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(listen(f"unix://{path}")))
    callers: list[int] = []

    async def treat(stream: trio.SocketStream) -> None:
        callers.append(len(callers))
        async with stream:
            with suppress(trio.BrokenResourceError):  # it had enough of us
                await behave(stream)

    async with trio.open_nursery() as nursery:
        await nursery.start(partial(trio.serve_listeners, treat, [listener]))
        yield callers
        nursery.cancel_scope.cancel()
    path.unlink()


async def hang(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def listen_and_say_nothing(stream: trio.SocketStream) -> None:
    while await stream.receive_some():
        pass


async def hang_up_at_once(stream: trio.SocketStream) -> None:
    return


async def hang_up_in_the_middle(stream: trio.SocketStream) -> None:
    await stream.receive_some(10)


async def answer_half(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.send_all(Frame(1, Kind.RESPONSE, bytes(50)).encode()[:20])


def answering(*frames: Frame) -> Behaviour:
    """Return a manager that gives every call the same reply."""

    async def answer(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            for frame in frames:
                await stream.send_all(frame.encode())

    return answer


def to_any_call(**fields: object) -> list[Frame]:
    return [response(stream_id, **fields) for stream_id in range(1, 99, 2)]


def response(stream_id: int, **fields: object) -> Frame:
    payload = wire_pb2.Response(**fields).SerializeToString()  # type: ignore[arg-type] # the case decides
    return Frame(stream_id, Kind.RESPONSE, payload)


async def flood_with_answers(stream: trio.SocketStream) -> None:
    while True:
        await stream.send_all(response(99).encode() * 1000)


async def flood_with_garbage(stream: trio.SocketStream) -> None:
    while True:
        await stream.send_all(b"\xff" * 65536)


async def flood_with_one_endless_frame(stream: trio.SocketStream) -> None:
    await stream.send_all(b"\xff\xff\xff\xff\0\0\0\1\2\0")
    while True:
        await stream.send_all(bytes(65536))


unknown = wire_pb2.Status(code=2, message="not today")
no_status = wire_pb2.Status(code=4711, message="no such status")
garbage = [Frame(stream_id, Kind.RESPONSE, b"\xff\xff") for stream_id in range(1, 99, 2)]
MISBEHAVIOURS: dict[str, Behaviour] = {
    "hangs": hang,
    "acknowledges nothing": listen_and_say_nothing,
    "hangs up at once": hang_up_at_once,
    "hangs up in the middle": hang_up_in_the_middle,
    "answers by half": answer_half,
    "answers with garbage": answering(*garbage),
    "answers no Empty": answering(*to_any_call(payload=b"\xff")),
    "answers another call": answering(response(2), response(4711)),
    "answers with an error": answering(*to_any_call(status=unknown)),
    "answers with no known status": answering(*to_any_call(status=no_status)),
    "sends other frames": answering(Frame(1, Kind.DATA, b""), Frame(1, Kind.REQUEST, b"")),
    "floods with answers": flood_with_answers,
    "floods with garbage": flood_with_garbage,
    "floods with one frame": flood_with_one_endless_frame,
}


@pytest.mark.parametrize("name", MISBEHAVIOURS)
async def test_nothing_is_lost_to_a_manager_that(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "ACKNOWLEDGE", 0.05)
    manager = Manager()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with publishing(tmp_path) as publisher:
        async with behaving(tmp_path / "events", MISBEHAVIOURS[name]) as callers:
            publish(publisher, *range(10))
            with trio.fail_after(20):
                while len(callers) < 3:
                    await trio.sleep(0.01)
            assert publisher.waiting == waiting_count(tmp_path) == 10
        monkeypatch.undo()  # an answer that is late would have its event sent again
        async with serving(tmp_path / "events", manager):
            await flush(publisher)
    assert manager.pids == list(range(10))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 64 << 10  # KiB


async def test_an_answer_that_is_late_acknowledges_no_other_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "ACKNOWLEDGE", 0.05)

    async def answer_too_late(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await trio.sleep(0.1)  # past the daemon's timeout, the subject of this test
        await stream.send_all(response(1, payload=Empty().SerializeToString()).encode())
        await stream.receive_some()

    manager = Manager()
    async with publishing(tmp_path) as publisher:
        async with behaving(tmp_path / "events", answer_too_late) as callers:
            publish(publisher, 1, 2)
            with trio.fail_after(20):
                while len(callers) < 3:
                    await trio.sleep(0.01)
        async with serving(tmp_path / "events", manager):
            await flush(publisher)
    assert manager.pids == [1, 2]


async def test_an_idle_connection_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "_IDLE_CONNECTION", 0.05)
    closed = trio.Event()

    async def acknowledge(stream: trio.SocketStream) -> None:
        async for _ in stream:
            await stream.send_all(response(1).encode())
        closed.set()

    async with publishing(tmp_path) as publisher, behaving(tmp_path / "events", acknowledge):
        publish(publisher, 1)
        await flush(publisher)
        with trio.fail_after(20):
            await closed.wait()
