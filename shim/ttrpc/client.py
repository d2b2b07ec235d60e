"""Calls over one ttrpc connection, on trio.

The caller connects the socket and decides about retries.  :mod:`shim.ttrpc.calls` has
the calls and the methods of the generated stubs.

Source: containerd/ttrpc client.go.
"""

from __future__ import annotations

import math
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from shim.scope import background
from shim.ttrpc import calls
from shim.ttrpc.calls import (
    Call,
    ConnectionLostError,
    Metadata,
    Reply,
    Request,
    StreamStreamMethod,
    StreamUnaryMethod,
    UnaryStreamMethod,
    UnaryUnaryMethod,
    too_late,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = [
    "Call",
    "Channel",
    "ConnectionLostError",
    "Metadata",
    "StreamStreamMethod",
    "StreamUnaryMethod",
    "UnaryStreamMethod",
    "UnaryUnaryMethod",
    "open_channel",
]

_CHUNK = 65536  # bytes; one read takes many replies


class Channel(calls.Channel):
    """One connection and the calls on it.  Made by :func:`open_channel`."""

    def __init__(self, stream: trio.abc.Stream, metadata: Metadata | None = None) -> None:
        super().__init__(metadata)
        self._stream = stream
        # Only a socket can be written without the writer task.
        self._fd = stream.socket.fileno() if isinstance(stream, trio.SocketStream) else -1
        self._outgoing, self._frames = trio.open_memory_channel[bytes](0)
        self._lost = trio.Event()

    def event(self) -> trio.Event:
        """Return a new event for one call."""
        return trio.Event()

    async def wait_lost(self) -> None:
        """Wait until the connection and every call on it have ended."""
        await self._lost.wait()

    @asynccontextmanager
    async def _open(self, call: Call[Request, Reply]) -> AsyncIterator[Call[Request, Reply]]:
        seconds = math.inf if call.timeout is None else max(call.timeout, 0)
        try:
            with trio.move_on_after(seconds) as scope:
                yield call
        finally:
            self._forget(call)
        if scope.cancelled_caught:
            raise too_late(call)

    async def send(self, call: Call[Any, Any], payload: bytes) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()  # before the frame takes its stream id
        frame = call.encode(self._protocol, payload)
        assert call.stream_id is not None
        self._calls[call.stream_id] = call
        try:
            if rest := self._send_now(frame):
                await self._outgoing.send(rest)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise ConnectionLostError from None

    def _send_now(self, frame: bytes) -> bytes:
        """Send ``frame`` without waiting, if no other frame is unsent; return it otherwise.

        The writer task sends the bytes that the socket does not take: it sends frames as
        a whole, so a cancelled call cannot leave half a frame on the wire.
        """
        if self._fd < 0 or not self._outgoing.statistics().tasks_waiting_receive:
            return frame
        try:
            sent = os.write(self._fd, frame)
        except OSError:  # the writer task gets it again, and handles it
            sent = 0
        if sent < len(frame):
            self._outgoing.send_nowait(frame[sent:])
        return b""

    async def _write_loop(self) -> None:
        # The reader task also finds a closed connection; before that it delivers the
        # replies that have arrived.
        try:
            async for frame in self._frames:
                await self._stream.send_all(frame)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._frames.close()

    async def _read_loop(self) -> None:
        try:
            while data := await self._stream.receive_some(_CHUNK):
                if not self._receive(data):
                    break
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._lose()

    def _lose(self) -> None:
        self._lost.set()
        self._frames.close()
        self._lose_calls()


@asynccontextmanager
async def open_channel(
    stream: trio.abc.Stream, metadata: Metadata | None = None
) -> AsyncIterator[Channel]:
    """Own ``stream`` for the block; close it and end every call at the end of the block.

    ``metadata`` goes with every call, for example ``{NAMESPACE: "k8s.io"}``.
    """
    channel = Channel(stream, metadata)
    async with stream, background(channel._read_loop, channel._write_loop):
        yield channel
