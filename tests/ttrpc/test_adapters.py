"""The client's other two faces, on asyncio and for threads: calls, and how each of them ends."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import grpclib.client
import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api.task_grpc import TaskStub
from shim.api.task_pb2 import CreateTaskRequest, StartRequest, StateRequest, WaitRequest
from shim.errors import TimedOutError, UnavailableError
from shim.linux import sockets
from shim.ttrpc import aio, blocking
from shim.ttrpc.blocking import run
from shim.ttrpc.calls import ConnectionLostError
from tests.shimctl.threaded import PATIENCE, Service, serving
from tests.ttrpc.fake import FakeTask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path
    from types import ModuleType

MUCH = "x" * (1 << 20)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with serving(tmp_path / "task", FakeTask()) as service:
        yield service


@asynccontextmanager
async def on_asyncio(address: str) -> AsyncIterator[aio.Channel]:
    async with asyncio.timeout(PATIENCE):
        async with aio.open_channel(await aio.connect(address)) as channel:
            yield channel


@contextmanager
def in_threads(address: str) -> Iterator[blocking.Channel]:
    with blocking.open_channel(blocking.connect(address)) as channel:
        yield channel


@contextmanager
def deaf(path: Path) -> Iterator[str]:
    """Listen, and take nothing."""
    with sockets.listen(f"unix://{path}"):
        yield f"unix://{path}"


@contextmanager
def raises(status: Status) -> Iterator[None]:
    with pytest.raises(GRPCError) as caught:
        yield
    assert caught.value.status is status


# On asyncio


def test_an_unmodified_grpclib_stub_works_on_asyncio(
    service: Service, grpclib_stubs: ModuleType
) -> None:
    async def main() -> None:
        async with on_asyncio(service.address) as channel:
            stub = grpclib_stubs.TaskStub(channel)
            assert type(stub.State) is grpclib.client.UnaryUnaryMethod
            assert (await stub.State(StateRequest(id="redis"), timeout=5)).id == "redis"
            with raises(Status.NOT_FOUND):
                await stub.Start(StartRequest(id="redis"), metadata={"a": "b"})
            with raises(Status.DEADLINE_EXCEEDED):
                await stub.Create(CreateTaskRequest(), timeout=0.01)

    asyncio.run(main())


def test_on_asyncio_two_hundred_calls_share_a_connection(service: Service) -> None:
    async def main() -> None:
        async with on_asyncio(service.address) as channel:
            stub = TaskStub(channel)
            names = [f"c{i}" for i in range(200)]
            waiting = asyncio.create_task(stub.Wait(WaitRequest()))
            replies = await asyncio.gather(*(stub.State(StateRequest(id=n)) for n in names))
            assert [reply.id for reply in replies] == names
            service.set(service.task.may_exit)
            assert (await waiting).exit_status == 137

    asyncio.run(main())


def test_on_asyncio_a_cancelled_call_is_forgotten_and_its_reply_ignored(service: Service) -> None:
    async def main() -> None:
        async with on_asyncio(service.address) as channel:
            stub = TaskStub(channel)
            creating = asyncio.create_task(stub.Create(CreateTaskRequest()))
            await asyncio.to_thread(service.wait, service.task.creating)
            creating.cancel()
            with pytest.raises(asyncio.CancelledError):
                await creating
            assert not channel._calls
            service.set(service.task.may_create)
            await asyncio.to_thread(service.wait, service.task.created)
            assert (await stub.State(StateRequest(id="next"))).id == "next"

    asyncio.run(main())


def test_on_asyncio_a_lost_connection_ends_every_call_and_each_that_comes(
    service: Service,
) -> None:
    async def main() -> None:
        async with on_asyncio(service.address) as channel:
            stub = TaskStub(channel)
            calls = [asyncio.create_task(stub.Wait(WaitRequest())) for _ in range(3)]
            await asyncio.to_thread(service.wait, service.task.waiting)
            service.set(service.end)
            for call in calls:
                with pytest.raises(ConnectionLostError):
                    await call
            await channel.wait_lost()
            with pytest.raises(ConnectionLostError):
                await stub.State(StateRequest())

    asyncio.run(main())


def test_on_asyncio_the_end_of_the_block_ends_the_calls_of_others(service: Service) -> None:
    async def main() -> None:
        async with on_asyncio(service.address) as channel:
            waiting = asyncio.create_task(TaskStub(channel).Wait(WaitRequest()))
            await asyncio.to_thread(service.wait, service.task.waiting)
        with pytest.raises(ConnectionLostError):
            await waiting

    asyncio.run(main())


def test_on_asyncio_a_peer_that_takes_nothing_costs_each_call_its_timeout(tmp_path: Path) -> None:
    async def main(address: str) -> None:
        async with on_asyncio(address) as channel:
            stub = TaskStub(channel)
            request = StateRequest(id=MUCH)
            calls = (stub.State(request, timeout=0.2) for _ in range(5))
            for outcome in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(outcome, GRPCError)
                assert outcome.status is Status.DEADLINE_EXCEEDED
            assert not channel._calls

    with deaf(tmp_path / "deaf") as address:
        asyncio.run(main(address))


# For threads


def test_an_unmodified_grpclib_stub_works_in_a_plain_thread(
    service: Service, grpclib_stubs: ModuleType
) -> None:
    with in_threads(service.address) as channel:
        stub = grpclib_stubs.TaskStub(channel)
        assert run(stub.State(StateRequest(id="redis"), timeout=5)).id == "redis"
        with raises(Status.NOT_FOUND):
            run(stub.Start(StartRequest(id="redis"), metadata={"a": "b"}))
        with raises(Status.DEADLINE_EXCEEDED):
            run(stub.Create(CreateTaskRequest(), timeout=0.01))
        assert not channel._calls


def test_threads_that_share_a_connection_each_have_their_own_answer(service: Service) -> None:
    def work(number: int) -> list[str]:
        names = (f"c{number}-{i}" for i in range(50))
        return [name for name in names if run(stub.State(StateRequest(id=name))).id != name]

    with in_threads(service.address) as channel, ThreadPoolExecutor(21) as threads:
        stub = TaskStub(channel)
        waiting = threads.submit(run, stub.Wait(WaitRequest(), timeout=PATIENCE))
        service.wait(service.task.waiting)
        assert list(threads.map(work, range(20), timeout=PATIENCE)) == [[]] * 20
        service.set(service.task.may_exit)
        assert waiting.result(PATIENCE).exit_status == 137


def test_who_reads_for_all_and_gives_up_leaves_the_reading_to_another(service: Service) -> None:
    with in_threads(service.address) as channel, ThreadPoolExecutor(2) as threads:
        stub = TaskStub(channel)
        first = threads.submit(run, stub.Create(CreateTaskRequest(), timeout=0.3))
        service.wait(service.task.creating)
        second = threads.submit(run, stub.Wait(WaitRequest(), timeout=PATIENCE))
        service.wait(service.task.waiting)
        with raises(Status.DEADLINE_EXCEEDED):
            first.result(PATIENCE)
        service.set(service.task.may_exit)
        assert second.result(PATIENCE).exit_status == 137


@pytest.mark.parametrize("ended_by", ["the peer", "us"])
def test_the_end_of_a_connection_ends_the_calls_of_all_threads(
    service: Service, ended_by: str
) -> None:
    with in_threads(service.address) as channel, ThreadPoolExecutor(3) as threads:
        stub = TaskStub(channel)
        calls = [threads.submit(run, stub.Wait(WaitRequest())) for _ in range(3)]
        service.wait(service.task.waiting)
        if ended_by == "us":
            channel.close()
        else:
            service.set(service.end)
        for call in calls:
            with pytest.raises(ConnectionLostError):
                call.result(PATIENCE)
        with pytest.raises(ConnectionLostError):
            run(stub.State(StateRequest(), timeout=PATIENCE))


def test_a_peer_that_takes_nothing_costs_each_thread_its_timeout(tmp_path: Path) -> None:
    def call(_: int) -> None:
        with raises(Status.DEADLINE_EXCEEDED):
            run(stub.State(StateRequest(id=MUCH), timeout=0.2))

    with (
        deaf(tmp_path / "deaf") as address,
        in_threads(address) as channel,
        ThreadPoolExecutor(5) as threads,
    ):
        stub = TaskStub(channel)
        list(threads.map(call, range(5), timeout=PATIENCE))
        assert not channel._calls
        assert not channel._unsent


def test_what_would_wait_for_something_else_is_refused_in_a_plain_thread() -> None:
    async def suspends() -> None:
        await trio.lowlevel.cancel_shielded_checkpoint()

    with pytest.raises(RuntimeError, match="only calls on a blocking channel"):
        run(suspends())


# Either


@pytest.fixture(params=["asyncio", "threads"])
def connect(request: pytest.FixtureRequest) -> Callable[[str, float], None]:
    """Connect, and close at once."""

    def connect(address: str, timeout: float) -> None:
        if request.param == "asyncio":
            asyncio.run(aio.connect(address, timeout)).close()
        else:
            blocking.connect(address, timeout).close()

    return connect


def test_nobody_there_is_said_at_once(
    connect: Callable[[str, float], None], tmp_path: Path
) -> None:
    with pytest.raises(UnavailableError):
        connect(f"unix://{tmp_path}/nobody", PATIENCE)


def test_who_accepts_no_one_costs_the_timeout(
    connect: Callable[[str, float], None], tmp_path: Path
) -> None:
    before = time.monotonic()
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as first:
        full.bind(str(tmp_path / "full"))
        full.listen(0)
        first.connect(str(tmp_path / "full"))
        with pytest.raises(TimedOutError, match=r"in 0.1 s"):
            connect(f"unix://{tmp_path}/full", 0.1)
    assert time.monotonic() - before < PATIENCE


def test_something_else_than_a_shim_is_said_to_be_that(tmp_path: Path) -> None:
    def chatter() -> None:
        peer, _ = listener.accept()
        with peer:
            peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 100)
            peer.recv(1 << 16)

    async def on_loop() -> None:
        async with on_asyncio(address) as channel:
            await TaskStub(channel).State(StateRequest(), timeout=PATIENCE)

    def in_loop() -> None:
        asyncio.run(on_loop())

    def in_thread() -> None:
        with in_threads(address) as channel:
            run(TaskStub(channel).State(StateRequest(), timeout=PATIENCE))

    address = f"unix://{tmp_path}/http"
    with sockets.listen(address) as listener:
        listener.setblocking(True)
        for face in (in_loop, in_thread):
            thread = threading.Thread(target=chatter)
            thread.start()
            with pytest.raises(GRPCError, match="is not a ttrpc server"):
                face()
            thread.join(PATIENCE)
            assert not thread.is_alive()
