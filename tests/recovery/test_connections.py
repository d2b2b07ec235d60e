"""The connections of a server are in its deposit, and a replacement goes on with them."""

from __future__ import annotations

import os
import select
import socket
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from google.protobuf.empty_pb2 import Empty
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api.task_grpc import TaskStub
from shim.api.task_pb2 import (
    ConnectRequest,
    ConnectResponse,
    CreateTaskRequest,
    KillRequest,
    StartRequest,
    StateRequest,
    WaitRequest,
)
from shim.recovery.connections import ConnectionRecord, Connections
from shim.recovery.deposit import Deposit
from shim.recovery.slot import StateSlot
from shim.ttrpc.client import ConnectionLostError, open_channel
from shim.ttrpc.connection import Methods
from shim.ttrpc.kept import KeptConnection
from shim.ttrpc.protocol import ClientProtocol
from shim.ttrpc.server import handlers_of, serve
from tests.recovery.generations import Generations, Told, client, frame, server, settled

if TYPE_CHECKING:
    from pathlib import Path

    from google.protobuf.message import Message

__all__ = ["server"]


async def test_a_connection_is_in_the_deposit_while_it_lasts(server: Generations) -> None:
    async with client(server) as stub:
        await stub.State(StateRequest(id="c1"))
        assert await settled(server) == {"conn/0", "calls/0"}
        async with client(server) as other:
            await other.State(StateRequest(id="c1"))
            assert len(await settled(server)) == 4
        assert await settled(server) == {"conn/0", "calls/0"}
    assert await settled(server) == set()


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_connection_takes_two_fds(server: Generations, replaced: bool) -> None:
    """The client here has one more, and the keeper two."""
    await settled(server)
    before = len(os.listdir("/proc/self/fd"))
    count = 8
    async with AsyncExitStack() as stack:
        for _ in range(count):
            stub = await stack.enter_async_context(client(server))
            await stub.Kill(KillRequest(id="c1"))  # the reply is saved, and counted
        if replaced:
            await server.replace()
            await stub.Kill(KillRequest(id="c1"))
        await settled(server)
        assert len(os.listdir("/proc/self/fd")) - before == (2 + 1 + 2) * count


@pytest.mark.parametrize("ending", ["by its peer", "with its server"])
async def test_a_closed_connection_is_not_sent_to_the_next_fork_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """Another file may have the number of its fd by then."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    listener.setblocking(False)
    deposit = Deposit(server=str(tmp_path / "server"))
    left = []
    close = trio.SocketStream.aclose

    async def aclose(stream: trio.SocketStream) -> None:
        left.append(deposit._originals.all())
        await close(stream)

    monkeypatch.setattr(trio.SocketStream, "aclose", aclose)
    methods = Methods.of(handlers_of(Told()), (), (), ())
    with listener, socket.socket(socket.AF_UNIX) as peer, trio.fail_after(20):
        peer.connect(str(tmp_path / "s"))
        fd, record = Connections(deposit).accept(listener)
        assert record is not None
        sock = socket.socket(fileno=fd)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(KeptConnection(stream, methods, record).run, trio.Event())
            await trio.testing.wait_all_tasks_blocked()
            assert deposit._originals.all().keys() == {"conn/0", "calls/0"}
            if ending == "by its peer":
                peer.close()
            else:
                nursery.cancel_scope.cancel()
    assert sock.fileno() < 0
    assert left == [{}]
    deposit.close()


async def test_a_shutdown_closes_the_connections_for_their_peers(server: Generations) -> None:
    async with open_channel(await trio.open_unix_socket(server.path)) as channel:
        await TaskStub(channel).State(StateRequest(id="c1"))
        server.service.shutdown.set()
        while await settled(server):
            pass
        await channel.wait_lost()


async def test_a_connection_goes_on_with_the_replacement(server: Generations) -> None:
    async with client(server) as stub:
        for number in range(5):
            reply = await stub.State(StateRequest(id=f"c{number}"))
            assert reply.id == f"c{number}"
            await server.replace()
        async with client(server) as other:
            assert (await other.State(StateRequest(id="c"))).id == "c"
            assert await settled(server) == {"conn/0", "calls/0", "conn/1", "calls/1"}


async def test_running_calls_begin_again_and_know_it(server: Generations) -> None:
    async with client(server) as stub, trio.open_nursery() as nursery:
        pids: list[int] = []

        async def start(id_: str) -> None:
            pids.append((await stub.Start(StartRequest(id=id_))).pid)

        async def wait() -> None:
            pids.append((await stub.Wait(WaitRequest())).exit_status)

        async def create() -> None:
            pids.append((await stub.Create(CreateTaskRequest())).pid)

        for task in (partial(start, "a"), partial(start, "bb"), wait, create):
            nursery.start_soon(task)
        await server.service.waiting.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert {replayed for _, replayed in server.service.replayed} == {False}
        for _ in range(3):
            service = await server.replace()
            await service.waiting.wait()
            await trio.testing.wait_all_tasks_blocked()
            calls = [("Create", True), ("Start", True), ("Start", True)]
            assert sorted(service.replayed) == calls
        for event in (service.may_start, service.may_exit, service.may_create):
            event.set()
        while len(pids) < 4:
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert sorted(pids) == [1, 2, 7, 137]
        service = await server.replace()
        assert (await stub.State(StateRequest(id="c1"))).id == "c1"
        assert service.replayed == [("State", False)], "no answered call begins again"


async def test_a_call_is_known_to_have_begun_once_its_method_says_so(
    server: Generations,
) -> None:
    async with client(server) as stub, trio.open_nursery() as nursery:
        for id_ in ("not begun", "begun"):
            nursery.start_soon(stub.Kill, KillRequest(id=id_))
        await settled(server)
        for _ in range(3):
            service = await server.replace()
            await settled(server)
            assert sorted(service.replayed) == [("begun", True), ("not begun", False)]
        service.may_start.set()


async def test_only_requests_that_were_in_the_socket_may_be_repetitions(
    server: Generations,
) -> None:
    async with await trio.open_unix_socket(server.path) as stream:
        await settled(server)
        await server.kill()
        await stream.send_all(frame(1, "State", StateRequest(id="c1")))
        await stream.send_all(frame(2, "Start", StartRequest(id="c1")))
        await server.start()
        assert await stream.receive_some()
        await stream.send_all(frame(3, "State", StateRequest(id="c1")))
        assert await stream.receive_some()
        # A call of Start would be in the record if it had begun.
        calls = [("State", True), ("Start", False), ("State", False)]
        assert server.service.replayed == calls


async def test_a_request_in_the_record_and_in_the_socket_is_one_call(
    server: Generations,
) -> None:
    """The killed server had recorded the call, and had not dropped its request yet."""
    request = frame(1, "Start", StartRequest(id="c1"))
    async with await trio.open_unix_socket(server.path) as stream:
        await stream.send_all(request)
        await settled(server)
        await server.kill()
        await stream.send_all(request + frame(2, "State", StateRequest(id="c1")))
        await server.start()
        server.service.may_start.set()
        protocol, replies = ClientProtocol(), 0
        while replies < 2:
            replies += len(protocol.receive_data(await stream.receive_some()))
        await settled(server)
        assert sorted(server.service.replayed) == [("Start", True), ("State", True)]


@pytest.mark.parametrize(
    ("method", "request_", "arrived"),
    [
        # The state with the reply, and the one after it.
        pytest.param("Start", StartRequest(id="c1"), [False, True], id="a method that acts"),
        pytest.param("Wait", WaitRequest(id="c1"), [True], id="a method that only waits"),
    ],
)
async def test_a_short_reply_is_saved_first_only_if_its_method_acts(
    server: Generations,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    request_: Message,
    arrived: list[bool],
) -> None:
    """Another method is never called again after its reply; a Wait may be."""
    found: list[bool] = []
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(server.path)
        peer.send(frame(1, method, request_))
        await settled(server)
        save = ConnectionRecord.save

        def noting(record: ConnectionRecord, state: bytes) -> None:
            found.append(bool(select.select([peer], [], [], 0)[0]))
            save(record, state)

        monkeypatch.setattr(ConnectionRecord, "save", noting)
        server.service.may_start.set()
        server.service.may_exit.set()
        await settled(server)
        reply = peer.recv(1 << 16)
        assert found == arrived
        await server.replace()
        await settled(server)
        assert server.service.replayed == []
        with pytest.raises(BlockingIOError):
            peer.recv(1 << 16, socket.MSG_DONTWAIT)
        assert reply


async def test_the_deadline_and_the_metadata_of_a_call_are_kept(server: Generations) -> None:
    async with client(server) as stub, trio.open_nursery() as nursery:
        with pytest.raises(GRPCError) as caught:  # noqa: PT012 - the kill is part of the call
            async with stub.Start.open(timeout=60, metadata={"Trace-Id": "a"}) as call:
                call.timeout = 0.05
                await call.send_message(StartRequest(id="c1"))
                await trio.testing.wait_all_tasks_blocked()
                await server.kill()
                await trio.sleep(0.06)
                await server.start()
                await call.recv_message()
        nursery.cancel_scope.cancel()
    assert caught.value.status is Status.DEADLINE_EXCEEDED
    assert "came after its deadline" in (caught.value.message or "")
    assert not server.service.replayed


async def test_a_peer_that_left_meanwhile_ends_its_calls(server: Generations) -> None:
    async with client(server) as stub, trio.open_nursery() as nursery:
        nursery.start_soon(_fails, stub)
        await server.service.creating.wait()
        await trio.testing.wait_all_tasks_blocked()
        await server.kill()
        nursery.cancel_scope.cancel()
    await server.start()
    assert await settled(server) == set()
    assert server.service.undone == [True]


async def _fails(stub: TaskStub) -> None:
    with pytest.raises(ConnectionLostError):
        await stub.Create(CreateTaskRequest())


@pytest.mark.parametrize(
    "state", [b"{", b'{"version":2}', b'{"version":1}', b'{"version":1,"calls":[[1]],"at":0}']
)
async def test_a_state_that_cannot_be_read_costs_its_connection(
    server: Generations, state: bytes, logged: Path
) -> None:
    async with await trio.open_unix_socket(server.path) as stream, client(server) as stub:
        await settled(server)
        await server.kill()
        assert server.keeper is not None
        slot = StateSlot(os.dup(server.keeper.fds["calls/0"]))
        slot.write(state)
        slot.close()
        await server.start()
        assert (await stub.State(StateRequest(id="c1"))).id == "c1"
        assert await settled(server) == {"conn/1", "calls/1"}
        assert await stream.receive_some() == b""
    assert "connection" in logged.read_text()


@pytest.mark.parametrize("missing", ["conn/0", "calls/0"])
async def test_half_of_a_connection_is_closed(
    server: Generations, missing: str, logged: Path
) -> None:
    async with await trio.open_unix_socket(server.path) as stream:
        await settled(server)
        await server.kill()
        assert server.keeper is not None
        server.keeper.discard(missing)
        await server.start()
        assert await settled(server) == set()
        assert await stream.receive_some() == b""
    assert "a connection is closed: cannot go on with it" in logged.read_text()


async def test_without_a_keeper_connections_are_served_and_not_kept(tmp_path: Path) -> None:
    store = Connections(Deposit(None))
    service = Told()
    sock = trio.socket.socket(socket.AF_UNIX)
    await sock.bind(str(tmp_path / "s"))
    sock.listen()
    async with trio.open_nursery() as nursery:
        serving = partial(serve, shutdown=service.shutdown, drain=1, store=store)
        await nursery.start(serving, trio.SocketListener(sock), handlers_of(service))
        async with open_channel(await trio.open_unix_socket(str(tmp_path / "s"))) as channel:
            assert (await TaskStub(channel).State(StateRequest(id="c1"))).id == "c1"
            assert (await TaskStub(channel).Kill(KillRequest())) == Empty()
            reply = await TaskStub(channel).Connect(ConnectRequest())
            assert reply == ConnectResponse(shim_pid=1)
        service.shutdown.set()
