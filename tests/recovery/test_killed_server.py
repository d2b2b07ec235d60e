"""Calls on a connection whose server is killed: each is answered, once and completely."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
import trio
from google.protobuf.any_pb2 import Any as AnyMessage

from shim.api.task_grpc import TaskStub
from shim.api.task_pb2 import (
    CreateTaskRequest,
    StateRequest,
    StateResponse,
    StatsRequest,
    UpdateTaskRequest,
)
from shim.ttrpc.client import open_channel
from shim.ttrpc.protocol import ClientProtocol
from tests.e2e.waiting import PATIENCE
from tests.recovery.mortal import content

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
TASK = "containerd.task.v3.Task"


class Server(NamedTuple):
    """A server that is killed; ``alive`` is set after its last death."""

    path: str
    calls: Path
    alive: trio.Event


@asynccontextmanager
async def killed(directory: Path, kills: int, mode: str, seed: int = 1) -> AsyncIterator[Server]:
    path, calls = f"{directory}/s", directory / "calls"
    command = [sys.executable, "-m", "tests.recovery.mortal", path, str(calls)]
    command += [str(seed), str(kills), mode]
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    server = Server(path, calls, trio.Event())

    async def watch() -> None:
        assert process.stdout is not None
        said = b""
        async for data in process.stdout:
            said += data
            assert b"alive\n".startswith(said), said.decode()
            if said == b"alive\n":
                server.alive.set()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            while not Path(path).exists():
                await trio.sleep(0.01)
            yield server
            assert process.stdin is not None
            await process.stdin.aclose()
            await process.wait()
    finally:
        process.kill()
        await process.wait()


async def connect(path: str) -> trio.SocketStream:
    """Return a connection on which a call was answered.

    A connection is lost if its server is killed just after it has accepted it.
    """
    request = StateRequest(id="first/0").SerializeToString()
    _, frame = ClientProtocol().encode_request(TASK, "State", request)
    while True:
        stream = await trio.open_unix_socket(path)
        with suppress(trio.BrokenResourceError):
            await stream.send_all(frame)
            if await stream.receive_some():
                return stream
        await stream.aclose()


async def call(stub: TaskStub, rng: random.Random, name: str) -> None:
    """Make one call, with a big or small request and reply, and check the reply."""
    size = rng.choice((0, 0, 100, 100, 100, 3000, 20_000, 20_000, MIB))
    kind = rng.randrange(5)
    if kind == 0:
        padding = content(name, size)
        reply = await stub.State(StateRequest(id=f"{name}/100", exec_id=padding))
        assert (reply.id, reply.stdout) == (name, content(name, 100))
    elif kind == 1:
        reply = await stub.State(StateRequest(id=f"{name}/{size}"))
        assert (reply.id, reply.stdout) == (name, content(name, size))
    elif kind == 2:
        stats = await stub.Stats(StatsRequest(id=f"{name}/{size}"))
        assert stats.stats.value.decode() == content(name, size)
    elif kind == 3:
        value = AnyMessage(value=content(name, size).encode())
        await stub.Update(UpdateTaskRequest(id=name, resources=value))
    else:
        created = await stub.Create(CreateTaskRequest(id=name, bundle="x" * size))
        assert created.pid == size


async def read_slowly(path: str, rng: random.Random, prefix: str, until: trio.Event) -> int:
    """Have calls answered by replies of all sizes, and read them in small pieces."""
    protocol = ClientProtocol()
    protocol.encode_request(TASK, "State", b"")  # that of connect()
    names: dict[int, tuple[str, int]] = {}
    answered: dict[int, str] = {}
    stream = await connect(path)
    number = 0
    while not until.is_set():
        for _ in range(rng.randrange(1, 4)):
            number += 1
            name, size = (
                f"{prefix}{number}",
                rng.choice((10, 10, 10, 1000, 1000, 50_000, 50_000, MIB)),
            )
            request = StateRequest(id=f"{name}/{size}").SerializeToString()
            stream_id, frame = protocol.encode_request(TASK, "State", request)
            names[stream_id] = (name, size)
            await stream.send_all(frame)
        while len(answered) < len(names):
            data = await stream.receive_some(rng.choice((10, 1000, 30_000)))
            assert data, "the connection was closed"
            for response in protocol.receive_data(data):
                if response.stream_id not in names:
                    continue  # the reply to connect(), which may be sent twice
                name, size = names[response.stream_id]
                assert not response.message
                reply = StateResponse.FromString(response.payload)
                assert (reply.id, reply.stdout) == (name, content(name, size))
                answered[response.stream_id] = name
        assert not protocol.foreign
    await stream.aclose()
    return number


def check_log(path: Path) -> Counter[str]:
    """Check that a method knows it if it may be called a second time for one request."""
    fresh: Counter[str] = Counter()
    every: Counter[str] = Counter()
    for line in path.read_text().splitlines():
        name, _, replayed = line.rpartition(" ")
        if name == "first":
            continue
        every[name] += 1
        fresh[name] += replayed == "0"
    assert max(fresh.values()) <= 1
    return every


@pytest.mark.parametrize("mode", ["time", "steps"])
async def test_calls_are_answered_whenever_their_server_is_killed(
    tmp_path: Path, mode: str
) -> None:
    kills = int(os.environ.get("SHIM_TEST_KILLS", "40"))
    seed = int(os.environ.get("SHIM_TEST_SEED", "1"))
    finished: list[str] = []

    async def work(channel_stub: TaskStub, number: int, server: Server) -> None:
        rng = random.Random(seed * 100 + number)
        count = 0
        while not server.alive.is_set():
            count += 1
            name = f"w{number}-{count}"
            await call(channel_stub, rng, name)
            finished.append(name)

    with trio.fail_after((60 + 2 * kills) * PATIENCE):
        async with killed(tmp_path, kills, mode, seed) as server, trio.open_nursery() as nursery:
            for number in range(2):
                rng = random.Random(seed * 1000 + number)
                nursery.start_soon(read_slowly, server.path, rng, f"r{number}-", server.alive)
            stream = await connect(server.path)
            async with open_channel(stream) as channel, trio.open_nursery() as workers:
                channel._protocol.encode_request(TASK, "State", b"")  # that of connect()
                for number in range(4):
                    workers.start_soon(work, TaskStub(channel), number, server)
    every = check_log(server.calls)
    assert set(finished) <= set(every)
    repeated = sum(count - 1 for count in every.values())
    print(f"{mode}: {kills} kills, {len(every)} calls, {repeated} repetitions")
