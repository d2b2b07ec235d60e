"""The server's calls: errors, deadlines, and their number on one connection."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError

from shim.api.task_grpc import TaskStub
from shim.api.task_pb2 import (
    CheckpointTaskRequest,
    ConnectRequest,
    DeleteRequest,
    ExecProcessRequest,
    KillRequest,
    PauseRequest,
    PidsRequest,
    ResizePtyRequest,
    ResumeRequest,
    ShutdownRequest,
    StateRequest,
    StateResponse,
    StatsRequest,
    UpdateTaskRequest,
)
from shim.ttrpc.client import UnaryUnaryMethod, open_channel
from shim.ttrpc.frames import Frame, Kind
from shim.ttrpc.protocol import ClientProtocol, ResponseReceived
from shim.ttrpc.server import (
    MAX_CALLS,
    handlers_of,
    serve_connection,
)
from tests.ttrpc.fake import V3_AS_V2, FakeTask, Listening, connected, raw_call, sockets_pair

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock


async def status_of_call(method: UnaryUnaryMethod[Any, Any], request: Any) -> Status:
    with pytest.raises(GRPCError) as caught:
        await method(request)
    return caught.value.status


async def converse(service: FakeTask, *sent: bytes) -> list[ResponseReceived]:
    """Send raw bytes, then a good State call with id 99; return all replies up to its own."""
    theirs, ours = sockets_pair()
    protocol, replies = ClientProtocol(), list[ResponseReceived]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(serve_connection, theirs, handlers=handlers_of(service)))
        for data in sent:
            await ours.send_all(data)
        await ours.send_all(raw_call(99, "State", StateRequest(id="redis").SerializeToString()))
        while not replies or replies[-1].stream_id != 99:
            replies += protocol.receive_data(await ours.receive_some())
        await ours.aclose()
    assert StateResponse.FromString(replies.pop().payload).id == "redis"
    return replies


async def test_a_malformed_payload_costs_its_own_call() -> None:
    [reply] = await converse(FakeTask(), raw_call(1, "State", b"\xff"))
    assert (reply.stream_id, reply.status) == (1, Status.INVALID_ARGUMENT)
    assert "/containerd.task.v3.Task/State" in reply.message


async def test_a_malformed_frame_costs_its_own_call() -> None:
    bad = Frame(1, Kind.REQUEST, b"\xff").encode()
    even = raw_call(2, "State")
    used = raw_call(1, "State")
    data = Frame(7, Kind.DATA, b"x").encode() + Frame(9, 200, b"x").encode()
    big = (5 << 20).to_bytes(4) + (5).to_bytes(4) + bytes([Kind.REQUEST, 0])
    replies = await converse(FakeTask(), bad, even, used, data, big, bytes(5 << 20))
    assert [(reply.stream_id, reply.status) for reply in replies] == [
        (1, Status.INVALID_ARGUMENT),
        (2, Status.INVALID_ARGUMENT),
        (1, Status.INVALID_ARGUMENT),
        (5, Status.RESOURCE_EXHAUSTED),
    ]


async def test_a_call_after_its_deadline_is_answered_and_not_run() -> None:
    service = FakeTask()
    [reply] = await converse(service, raw_call(1, "State", timeout_nano=-1))
    assert (reply.stream_id, reply.status) == (1, Status.DEADLINE_EXCEEDED)
    assert service.states == 1


async def test_a_call_is_cancelled_at_its_deadline(autojump_clock: MockClock) -> None:
    service = FakeTask()
    theirs, ours = sockets_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(serve_connection, theirs, handlers=handlers_of(service)))
        await ours.send_all(raw_call(1, "Wait", timeout_nano=20 * 10**9))
        [reply] = ClientProtocol().receive_data(await ours.receive_some())
        assert reply.status is Status.DEADLINE_EXCEEDED
        assert trio.current_time() == pytest.approx(20, abs=0.1)
        assert service.wait_abandoned.is_set()
        await ours.aclose()


@pytest.mark.parametrize("name", ["/containerd.task.v3.Task/Levitate", "/no.Such/State", "/", ""])
async def test_an_unknown_method_is_unimplemented(name: str) -> None:
    async with connected(FakeTask()) as channel:
        method = UnaryUnaryMethod(channel, name, StateRequest, StateResponse)
        assert await status_of_call(method, StateRequest()) is Status.UNIMPLEMENTED


async def test_a_streaming_method_is_unimplemented() -> None:
    class Streaming:
        def __mapping__(self) -> dict[str, Handler]:
            return {"/s.S/M": Handler(None, Cardinality.UNARY_STREAM, StateRequest, StateResponse)}

    theirs, ours = sockets_pair()
    async with trio.open_nursery() as nursery:
        handlers = handlers_of(Streaming())
        nursery.start_soon(partial(serve_connection, theirs, handlers=handlers))
        async with open_channel(ours) as channel:
            method = UnaryUnaryMethod(channel, "/s.S/M", StateRequest, StateResponse)
            assert await status_of_call(method, StateRequest()) is Status.UNIMPLEMENTED


def test_an_alias_serves_every_method_under_both_names() -> None:
    handlers = handlers_of(FakeTask(), aliases=V3_AS_V2)
    assert len(handlers) == 34
    for name in ("State", "Shutdown"):
        v2, v3 = (handlers[f"/containerd.task.{v}.Task/{name}"] for v in ("v2", "v3"))
        assert v2.func == v3.func
    assert len(handlers_of(FakeTask())) == 17


async def test_a_failure_the_caller_can_act_on_is_not_logged(logged: Path) -> None:
    async with connected(FakeTask()) as channel:
        stub = TaskStub(channel)
        statuses = [
            await status_of_call(stub.Delete, DeleteRequest()),
            await status_of_call(stub.Stats, StatsRequest()),
            await status_of_call(stub.Exec, ExecProcessRequest()),
            await status_of_call(stub.Checkpoint, CheckpointTaskRequest()),
            await status_of_call(stub.Resume, ResumeRequest()),
        ]
    assert statuses == [
        Status.FAILED_PRECONDITION,
        Status.NOT_FOUND,
        Status.NOT_FOUND,
        Status.UNIMPLEMENTED,
        Status.FAILED_PRECONDITION,
    ]
    assert logged.read_text() == ""


async def test_a_bug_in_a_method_is_unknown_and_logged(logged: Path) -> None:
    async with connected(FakeTask()) as channel:
        stub = TaskStub(channel)
        assert await status_of_call(stub.Pids, PidsRequest()) is Status.UNKNOWN
        assert await status_of_call(stub.ResizePty, ResizePtyRequest()) is Status.UNKNOWN
        assert await status_of_call(stub.Pause, PauseRequest()) is Status.UNKNOWN
        assert await status_of_call(stub.Update, UpdateTaskRequest()) is Status.UNKNOWN
        await stub.Kill(KillRequest())
    text = logged.read_text()
    assert text.count('msg="method failed"') == 4
    assert "method=/containerd.task.v3.Task/Pids" in text
    assert "returned without a reply" in text


async def test_a_reply_that_does_not_fit_is_an_error_of_its_call() -> None:
    service = FakeTask()
    async with connected(service) as channel:
        stub = TaskStub(channel)
        service.reply_size = 5 << 20
        assert await status_of_call(stub.State, StateRequest()) is Status.RESOURCE_EXHAUSTED
        service.reply_size = 4_000_000
        assert len((await stub.State(StateRequest())).stdout) == 4_000_000


async def test_a_method_sees_metadata_and_the_request_once() -> None:
    service = FakeTask()
    async with connected(service) as channel:
        reply = await TaskStub(channel).Connect(ConnectRequest(), metadata={"K": "v"})
    assert reply.shim_pid == 1
    assert service.metadata == {"k": ["v"]}


async def test_a_connection_has_so_many_calls_at_once_and_another_is_refused() -> None:
    service = FakeTask()
    theirs, ours = sockets_pair()
    protocol = ClientProtocol()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            serving = partial(serve_connection, theirs, handlers=handlers_of(service))
            nursery.start_soon(partial(serving, cancellable={"Wait"}))
            for number in range(MAX_CALLS):
                await ours.send_all(raw_call(2 * number + 1, "Wait"))
            last = 2 * MAX_CALLS + 1
            await ours.send_all(raw_call(last, "Wait"))
            [reply] = protocol.receive_data(await ours.receive_some())
            assert (reply.stream_id, reply.status) == (last, Status.RESOURCE_EXHAUSTED)
            service.may_exit.set()
            answered = 0
            while answered < MAX_CALLS:
                replies = protocol.receive_data(await ours.receive_some())
                assert {reply.status for reply in replies} <= {Status.OK}
                answered += len(replies)
            # There is room again.
            await ours.send_all(raw_call(last + 2, "Wait"))
            [reply] = protocol.receive_data(await ours.receive_some())
            assert (reply.stream_id, reply.status) == (last + 2, Status.OK)
            await ours.aclose()


async def test_a_bug_in_the_server_costs_one_call(tmp_path: Path, logged: Path) -> None:
    class Broken:
        def __mapping__(self) -> dict[str, Handler]:
            return {"/s.S/M": Handler(None, Cardinality.UNARY_UNARY, None, None)}

    server = Listening(str(tmp_path / "s"), FakeTask(), Broken())
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(server.run, drain=5))
            async with open_channel(await trio.open_unix_socket(server.path)) as channel:
                broken = UnaryUnaryMethod(channel, "/s.S/M", StateRequest, StateResponse)
                assert await status_of_call(broken, StateRequest()) is Status.UNKNOWN
                await TaskStub(channel).Shutdown(ShutdownRequest())
    assert 'msg="method failed"' in logged.read_text()


def test_a_daemon_loads_neither_asyncio_nor_h2() -> None:
    code = (
        "import sys, shim.api.task_grpc, shim.api.forward_grpc\n"
        "import shim.ttrpc.client, shim.ttrpc.server\n"
        "print(sorted({'asyncio', 'h2', 'grpclib.client', 'grpclib.server'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"
