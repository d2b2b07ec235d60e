"""Peers for shimctl to meet on a socket: a shim in this process, and servers that are no
shim.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
from google.protobuf.empty_pb2 import Empty
from grpclib.const import Cardinality, Handler
from grpclib.exceptions import GRPCError

from shim.api import process_pb2
from shim.api import task_pb2 as api
from shim.linux import sockets
from shim.ttrpc.server import serve, unary

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from grpclib.const import Status


class FakeTask:
    """The two methods that every probe needs, and one that fails on request."""

    def __init__(self, version: int, known: str = "", failure: Status | None = None) -> None:
        self.known = known
        self.failure = failure
        self.version = version
        self.killed: list[tuple[str, int]] = []

    @unary
    async def Connect(self, request: api.ConnectRequest) -> api.ConnectResponse:
        pid = 42 if request.id == self.known else 0
        return api.ConnectResponse(shim_pid=4_000_000, task_pid=pid, version="fake")

    @unary
    async def State(self, request: api.StateRequest) -> api.StateResponse:
        return api.StateResponse(id=request.id, pid=42, status=process_pb2.RUNNING, bundle="/b")

    @unary
    async def Kill(self, request: api.KillRequest) -> Empty:
        if self.failure is not None:
            raise GRPCError(self.failure, "as told")
        self.killed.append((request.id, request.signal))
        return Empty()

    def handlers(self) -> dict[str, Handler]:
        route = f"/containerd.task.v{self.version}.Task"
        unary_unary = Cardinality.UNARY_UNARY
        return {
            f"{route}/Connect": Handler(
                self.Connect, unary_unary, api.ConnectRequest, api.ConnectResponse
            ),
            f"{route}/State": Handler(
                self.State, unary_unary, api.StateRequest, api.StateResponse
            ),
            f"{route}/Kill": Handler(self.Kill, unary_unary, api.KillRequest, Empty),
        }


@asynccontextmanager
async def serving(path: Path, task: FakeTask) -> AsyncIterator[str]:
    """Serve ``task`` on ``path`` for the block; give the address."""
    address = f"unix://{path}"
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(sockets.listen(address)))
    shutdown = trio.Event()
    async with trio.open_nursery() as nursery:
        start = partial(serve, shutdown=shutdown, drain=1)
        await nursery.start(start, listener, task.handlers())
        yield address
        shutdown.set()


@asynccontextmanager
async def answering(path: Path, answer: bytes | None) -> AsyncIterator[str]:
    """Listen on ``path``, and answer everything with ``answer``; None never answers."""

    async def converse(stream: Any) -> None:
        async with stream:
            await stream.receive_some()
            if answer is None:
                await trio.sleep_forever()
            await stream.send_all(answer)

    sock = sockets.listen(f"unix://{path}")
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, converse, [listener])
        yield f"unix://{path}"
        nursery.cancel_scope.cancel()
