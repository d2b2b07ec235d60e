"""A caller of the CRI: containerd's gRPC socket, a connection for each turn.

A turn is one call, or several at the same time.  Between turns nothing is open,
so that containerd may die and come back whenever a test likes.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from grpclib.client import Channel, UnaryStreamMethod, UnaryUnaryMethod

from tests.cri.messages import CRI

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    Request = tuple[str, dict[str, Any]]  # the name of a method, and fields by name

CALL = 60  # s; far more than any call takes on a busy machine


class Turn:
    """Calls over one connection."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def call(self, name: str, **fields: Any) -> Any:
        """:raises grpclib.GRPCError: the answer is an error."""
        method = CRI.methods[name]
        make = UnaryUnaryMethod(self._channel, method.path, method.request, method.reply)
        return await make(method.request(**fields), timeout=CALL)

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[Any]]:
        """Listen to the events of containers; when the block begins they are coming."""
        method = CRI.methods["GetContainerEvents"]
        listen = UnaryStreamMethod(self._channel, method.path, method.request, method.reply)
        async with listen.open(timeout=CALL) as stream:
            await stream.send_message(method.request(), end=True)
            yield aiter(stream)
            await stream.cancel()


class Cri:
    def __init__(self, address: Path) -> None:
        self._address = address

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        async with Channel(path=str(self._address)) as channel:
            yield Turn(channel)

    def __call__(self, name: str, **fields: Any) -> Any:
        """Make one call.

        :raises grpclib.GRPCError: the answer is an error.
        """
        return self.together([(name, fields)])[0]

    def together(self, calls: Iterable[Request]) -> list[Any]:
        """Make all calls at the same time; return their answers in order.

        :raises grpclib.GRPCError: one of the answers is an error.
        """

        async def make() -> list[Any]:
            async with self.turn() as turn:
                return await asyncio.gather(*(turn.call(name, **f) for name, f in calls))

        return asyncio.run(make())
