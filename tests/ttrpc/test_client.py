from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpclib.client
import pytest
import trio
import trio.testing
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError, ProtocolError

from shim.api.task_grpc import TaskStub
from shim.api.task_pb2 import (
    ConnectRequest,
    CreateTaskRequest,
    CreateTaskResponse,
    StartRequest,
    StateRequest,
    StateResponse,
    WaitRequest,
)
from shim.ttrpc import client as ttrpc
from shim.ttrpc import wire_pb2
from shim.ttrpc.client import ConnectionLostError, open_channel
from shim.ttrpc.frames import MAX_PAYLOAD, Frame, FrameDecoder, Kind, TooBigError
from shim.ttrpc.protocol import NAMESPACE, ServerProtocol
from tests.ttrpc.fake import FakeTask, connected

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


async def test_a_reply_comes_back() -> None:
    async with connected(FakeTask()) as channel:
        reply = await TaskStub(channel).State(StateRequest(id="redis"))
    assert reply == StateResponse(id="redis", pid=1)


async def test_an_error_comes_back_as_it_was_raised() -> None:
    async with connected(FakeTask()) as channel:
        with pytest.raises(GRPCError) as caught:
            await TaskStub(channel).Start(StartRequest(id="redis"))
    assert caught.value.status is Status.NOT_FOUND
    assert caught.value.message == "container redis does not exist"


async def test_two_hundred_calls_share_a_connection() -> None:
    replies: dict[int, str] = {}

    async def call(stub: TaskStub, number: int) -> None:
        replies[number] = (await stub.State(StateRequest(id=f"c{number}"))).id

    service = FakeTask()
    async with connected(service) as channel, trio.open_nursery() as nursery:
        nursery.start_soon(TaskStub(channel).Wait, WaitRequest())
        async with trio.open_nursery() as calls:
            for number in range(200):
                calls.start_soon(call, TaskStub(channel), number)
        service.may_exit.set()  # the call that came first is answered last
    assert replies == {number: f"c{number}" for number in range(200)}


async def test_a_silent_server_costs_the_timeout(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ours, _theirs = trio.testing.memory_stream_pair()
    async with open_channel(ours) as channel:
        with pytest.raises(GRPCError) as caught:
            await TaskStub(channel).State(StateRequest(id="redis"), timeout=30)
    assert caught.value.status is Status.DEADLINE_EXCEEDED
    assert autojump_clock.current_time() == pytest.approx(30, abs=0.1)


async def test_the_server_is_told_the_timeout(autojump_clock: trio.testing.MockClock) -> None:
    service = FakeTask()
    async with connected(service) as channel:
        await TaskStub(channel).Connect(ConnectRequest(), timeout=30)
        assert service.deadline == pytest.approx(trio.current_time() + 30, abs=0.1)
        await TaskStub(channel).Connect(ConnectRequest())
        assert service.deadline == float("inf")


def socket_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Return two connected streams with buffers of some kilobytes."""
    ours, theirs = trio.socket.socketpair()
    for sock in (ours, theirs):
        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_SNDBUF, 1)
    return trio.SocketStream(ours), trio.SocketStream(theirs)


@pytest.mark.parametrize("pair", [trio.testing.memory_stream_pair, socket_pair])
@pytest.mark.parametrize("timeout", [0, -1])
async def test_a_call_without_time_is_not_sent(timeout: float, pair: Callable[[], Any]) -> None:
    ours, theirs = pair()
    async with theirs:
        async with open_channel(ours) as channel:
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(GRPCError) as caught:
                await TaskStub(channel).State(StateRequest(), timeout=timeout)
        assert caught.value.status is Status.DEADLINE_EXCEEDED
        assert await theirs.receive_some() == b""


async def test_metadata_of_the_call_is_added_to_the_channels() -> None:
    service = FakeTask()
    async with connected(service) as channel:
        channel._metadata[NAMESPACE] = "k8s.io"
        await TaskStub(channel).Connect(ConnectRequest(), metadata={"Trace": "1"})
        assert service.metadata == {NAMESPACE: ["k8s.io"], "trace": ["1"]}
        await TaskStub(channel).Connect(ConnectRequest(), metadata=[(NAMESPACE, "moby")])
        assert service.metadata == {NAMESPACE: ["moby"]}


async def test_open_channel_takes_metadata_for_every_call() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    async with open_channel(ours, {NAMESPACE: "k8s.io"}) as channel:
        with trio.move_on_after(0.01):
            await TaskStub(channel).State(StateRequest())
        [event] = ServerProtocol().receive_data(await theirs.receive_some())
    assert event.metadata == {NAMESPACE: ["k8s.io"]}


async def test_a_cancelled_call_is_forgotten_and_its_reply_ignored() -> None:
    service = FakeTask()
    async with connected(service) as channel:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(TaskStub(channel).Create, CreateTaskRequest())
            await service.creating.wait()
            nursery.cancel_scope.cancel()
        assert channel._calls == {}
        service.may_create.set()
        assert (await TaskStub(channel).State(StateRequest(id="redis"))).id == "redis"


async def ids_of_two_frames(theirs: trio.abc.ReceiveStream, stub: TaskStub) -> list[int]:
    """Make one more call; return the stream ids of the next two frames the server gets."""
    decoder, ids = FrameDecoder(), list[int]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stub.State, StateRequest())
        while len(ids) < 2:
            ids += [frame.stream_id for frame in decoder.receive(await theirs.receive_some(7))]
        nursery.cancel_scope.cancel()
    return ids


async def test_a_call_cancelled_while_it_is_being_sent_does_not_tear_its_frame() -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()
    async with open_channel(ours) as channel:
        stub = TaskStub(channel)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stub.State, StateRequest(id="x" * 1000))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert await ids_of_two_frames(theirs, stub) == [1, 3]


@pytest.mark.slow
async def test_a_call_cancelled_in_the_middle_of_a_full_socket_does_not_tear_its_frame() -> None:
    ours, theirs = socket_pair()
    async with theirs, open_channel(ours) as channel:
        stub = TaskStub(channel)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stub.State, StateRequest(id="x" * 1_000_000))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert await ids_of_two_frames(theirs, stub) == [1, 3]


async def test_frames_reach_a_slow_server_in_the_order_of_their_ids() -> None:
    ours, theirs = socket_pair()
    decoder, ids = FrameDecoder(), list[int]()
    async with theirs, open_channel(ours) as channel, trio.open_nursery() as nursery:
        stub = TaskStub(channel)
        for number in range(300):
            nursery.start_soon(stub.State, StateRequest(id="x" * (number * 37 % 5000)))
        while len(ids) < 300:
            frames = decoder.receive(await theirs.receive_some(1000))
            ids += [frame.stream_id for frame in frames]
            if len(ids) % 3 == 0:  # a call while frames wait
                nursery.start_soon(stub.State, StateRequest())
        nursery.cancel_scope.cancel()
    assert ids == list(range(1, 2 * len(ids), 2))


async def test_a_server_that_does_not_read_is_not_sent_what_nobody_waits_for() -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()
    async with open_channel(ours) as channel:
        stub = TaskStub(channel)
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(stub.State, StateRequest())
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        # One frame was being written; the ids of the others are used up.
        assert await ids_of_two_frames(theirs, stub) == [1, 101]


async def test_a_lost_connection_ends_every_call() -> None:
    lost = 0

    async def wait(stub: TaskStub) -> None:
        nonlocal lost
        with pytest.raises(ConnectionLostError) as caught:
            await stub.Wait(WaitRequest())
        assert caught.value.status is Status.UNAVAILABLE
        lost += 1

    ours, theirs = trio.testing.memory_stream_pair()
    async with open_channel(ours) as channel:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(wait, TaskStub(channel))
            await trio.testing.wait_all_tasks_blocked()
            await theirs.aclose()
        await channel.wait_lost()
        await wait(TaskStub(channel))
    assert lost == 4


async def test_a_server_that_ends_without_reading_ends_the_calls_not_yet_sent() -> None:
    async def call(stub: TaskStub) -> None:
        with pytest.raises(ConnectionLostError, match="connect again"):
            await stub.State(StateRequest())

    ours, theirs = trio.testing.lockstep_stream_pair()
    async with open_channel(ours) as channel:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(call, TaskStub(channel))
                await trio.testing.wait_all_tasks_blocked()
                await theirs.send_eof()


async def test_a_truncated_reply_is_a_lost_connection() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    async with open_channel(ours) as channel, trio.open_nursery() as nursery:
        nursery.start_soon(_send_and_close, theirs, Frame(1, Kind.RESPONSE, b"abc").encode()[:-1])
        with pytest.raises(ConnectionLostError):
            await TaskStub(channel).State(StateRequest())


async def _send_and_close(stream: trio.abc.Stream, data: bytes) -> None:
    await stream.receive_some()
    await stream.send_all(data)
    await stream.aclose()


async def test_a_reply_sent_just_before_the_end_still_arrives() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    async with open_channel(ours) as channel, trio.open_nursery() as nursery:
        nursery.start_soon(_send_and_close, theirs, Frame(1, Kind.RESPONSE).encode())
        assert await TaskStub(channel).State(StateRequest()) == StateResponse()


async def test_the_end_of_the_block_ends_the_calls_of_others() -> None:
    async def create(stub: TaskStub) -> None:
        with pytest.raises(ConnectionLostError):
            await stub.Create(CreateTaskRequest())

    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        async with open_channel(ours) as channel:
            nursery.start_soon(create, TaskStub(channel))
            await trio.testing.wait_all_tasks_blocked()
        await create(TaskStub(channel))
    await theirs.aclose()


async def test_a_reply_of_another_type_is_an_error_of_its_call() -> None:
    payload = wire_pb2.Response(payload=b"\xff").SerializeToString()
    ours, theirs = trio.testing.memory_stream_pair()
    async with open_channel(ours) as channel, trio.open_nursery() as nursery:
        nursery.start_soon(_send_and_close, theirs, Frame(1, Kind.RESPONSE, payload).encode())
        with pytest.raises(GRPCError) as caught:
            await TaskStub(channel).State(StateRequest())
    assert caught.value.status is Status.INTERNAL
    assert caught.value.message is not None
    assert "containerd.task.v3.StateResponse" in caught.value.message


async def test_a_request_that_does_not_fit_is_refused_here() -> None:
    async with connected(FakeTask()) as channel:
        with pytest.raises(TooBigError):
            await TaskStub(channel).State(StateRequest(id="x" * MAX_PAYLOAD))
        assert (await TaskStub(channel).State(StateRequest(id="redis"))).id == "redis"


@pytest.mark.parametrize(
    "method", [ttrpc.UnaryStreamMethod, ttrpc.StreamUnaryMethod, ttrpc.StreamStreamMethod]
)
async def test_streaming_calls_are_refused(method: Any) -> None:
    async with connected(FakeTask()) as channel:
        with pytest.raises(GRPCError) as caught:
            await method(channel, "/s.S/M", StateRequest, StateResponse)(StateRequest())
    assert caught.value.status is Status.UNIMPLEMENTED


async def test_a_call_is_one_message_out_and_one_back() -> None:
    async with connected(FakeTask()) as channel, TaskStub(channel).State.open() as call:
        with pytest.raises(ProtocolError):
            await call.recv_message()
        await call.send_message(StateRequest(id="redis"), end=True)
        with pytest.raises(ProtocolError):
            await call.send_message(StateRequest(id="redis"), end=True)
        assert (await call.recv_message()) == StateResponse(id="redis", pid=1)
        assert (await call.recv_message()) is None


async def test_an_unmodified_grpclib_stub_works_on_the_channel(grpclib_stubs: ModuleType) -> None:
    async with connected(FakeTask()) as channel:
        stub = grpclib_stubs.TaskStub(channel)
        assert type(stub.State) is grpclib.client.UnaryUnaryMethod
        assert (await stub.State(StateRequest(id="redis"), timeout=5)).id == "redis"
        with pytest.raises(GRPCError) as caught:
            await stub.Start(StartRequest(id="redis"), metadata={"a": "b"})
        assert caught.value.status is Status.NOT_FOUND
        with pytest.raises(GRPCError) as caught:
            await stub.Create(CreateTaskRequest(), timeout=0.01)
        assert caught.value.status is Status.DEADLINE_EXCEEDED


async def test_a_method_is_found_by_its_full_name() -> None:
    service = FakeTask()
    service.may_create.set()
    async with connected(service) as channel:
        request = partial(channel.request, cardinality=Cardinality.UNARY_UNARY)
        opened = request(
            "/containerd.task.v2.Task/Create",
            request_type=CreateTaskRequest,
            reply_type=CreateTaskResponse,
        )
        async with opened as call:
            await call.send_message(CreateTaskRequest(), end=True)
            assert await call.recv_message() == CreateTaskResponse(pid=7)
