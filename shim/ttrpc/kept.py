"""Server connections that stay open after the server is killed, with no call lost or damaged.

A :class:`ConnectionStore` keeps a copy of each connection, and a :class:`Record` of its calls,
for a replacement of the server.  At any moment a record has

- the received part of an incomplete frame; whole requests stay in the socket until their
  methods have begun, or have returned if they are immediate;
- the running calls of all other methods;
- the replies that the socket has not taken, and how many of their bytes it has taken.

A replacement sends the rest of the replies, calls the methods of the running calls again
(:attr:`~shim.ttrpc.services.Stream.replayed`), and reads on.  No method is called again after
its reply, except for those that only wait, and an immediate one: its request is removed from the
socket after its reply, so a replacement calls the method in :attr:`.Methods.repeated` for it.

A short reply is sent whole and not counted, so a peer may get it twice, if the server is killed
just after it.  Clients ignore a reply to a call that has ended.

Source: containerd/ttrpc client.go, receiveLoop, for that.
"""

from __future__ import annotations

import socket
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import trio

from shim import log
from shim.ttrpc.callstate import CallState, begun_call, encode_call, encode_state
from shim.ttrpc.connection import CHUNK, Connection
from shim.ttrpc.frames import extent
from shim.ttrpc.services import UNSENT_LIMIT, PeerRefusedError, check_peer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shim.ttrpc.connection import Methods
    from shim.ttrpc.protocol import RequestReceived
    from shim.ttrpc.services import Stream

# Bytes that one write(2) sends whole or not at all, if the send buffer has its usual size.
# Source: net/unix/af_unix.c unix_stream_sendmsg, which sends so much as one buffer.
_WHOLE = 16 << 10
_OVERHEAD = 64


class Record(Protocol):
    """The bytes and calls of one connection, exact even if the server is killed in a method."""

    @property
    def sent(self) -> int:
        """The bytes that :meth:`send` has sent since the connection began."""

    @property
    def unhandled(self) -> tuple[bytes, int]:
        """The received bytes that are kept, and the number that :meth:`advance` got last."""

    def receive(self) -> bytes:
        """Read from the connection, without waiting, and keep the bytes.

        :raises BlockingIOError: there is nothing to read.
        :raises OSError: the connection is broken.
        """

    def advance(self, unhandled: int, discard: int) -> None:
        """Keep only the last ``unhandled`` bytes, and keep the number ``discard``."""

    def send(self, data: bytes, offset: int) -> int:
        """Send ``data`` from ``offset`` on, without waiting; return the number of bytes sent.

        :raises BlockingIOError: the socket takes nothing.
        :raises OSError: the connection is broken.
        """

    def save(self, state: bytes) -> None:
        """Replace the state."""

    def load(self) -> bytes:
        """Return the state, empty if none was saved.

        :raises InvalidError: it is damaged.
        """

    def leave(self) -> None:
        """Close the record; the copies stay for a replacement.

        Call this or :meth:`close` before the connection is closed.
        """

    def close(self) -> None:
        """Close the record and its copies.  A second call does nothing."""


class ConnectionStore(Protocol):
    """Where a server leaves copies of its connections."""

    def accept(self, listener: socket.socket) -> tuple[int, Record | None]:
        """Accept a connection and leave a copy at once; the record is None if nothing keeps it.

        :raises BlockingIOError: no client waits.
        :raises OSError: no fd or no memory is left.
        """


class Resumed(NamedTuple):
    """A connection of a server that was killed."""

    stream: trio.SocketStream
    record: Record


class KeptListener(trio.abc.Listener[trio.SocketStream]):
    """Owns ``listener``, and has the store copy each connection as soon as it is accepted.

    A server that is killed between the two closes the connection; no call is lost.
    ``records`` has the record of each connection that has one; the user of the connection
    removes it there.
    """

    def __init__(self, listener: trio.SocketListener, store: ConnectionStore) -> None:
        self._listener = listener
        # The fd belongs to the listener.
        self._socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_STREAM, 0, listener.socket.fileno()
        )
        self._store = store
        self.records: dict[trio.SocketStream, Record] = {}

    async def accept(self) -> trio.SocketStream:
        """Return the next connection of a process of our user.

        :raises OSError: no fd or no memory is left.
        :raises trio.ClosedResourceError: the listener is closed.
        """
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            with suppress(BlockingIOError):
                fd, record = self._store.accept(self._socket)
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd)
                try:
                    check_peer(sock)
                except PeerRefusedError as exc:
                    log.warning("connection refused", error=exc)
                    if record is not None:
                        record.close()
                    sock.close()
                    continue
                stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
                if record is not None:
                    self.records[stream] = record
                return stream

    async def aclose(self) -> None:
        """Close the listener."""
        self._socket.detach()
        await self._listener.aclose()


class KeptConnection(Connection):
    """A connection with a ``record``, owned from now on; ``resumed`` if it has a state."""

    def __init__(
        self,
        stream: trio.SocketStream,
        methods: Methods,
        record: Record,
        *,
        resumed: bool = False,
    ) -> None:
        super().__init__(stream, methods)
        self._record = record
        self._resumed = resumed
        # The fd belongs to the stream.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, self._fd)
        # Received bytes stay in the socket if they are whole frames.
        self._peek = partial(self._socket.recv, CHUNK, socket.MSG_PEEK)
        self._receive = self._peek
        self._keeps = False  # they are in the record, not in the socket
        self._called: set[int] = set()  # streams whose requests were in the saved state
        buffer = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        self._whole = min(_WHOLE, buffer // 2 - _OVERHEAD)
        # Replies that are in the saved state, and how much of them is sent.
        self._outgoing = b""
        self._offset = 0
        self._records: dict[int, str] = {}  # the running calls, as in the state
        self._begun: set[int] = set()  # the streams of those that have begun, as in the state
        self._changed = False  # the records are not those in the saved state
        self._has_ended = False  # a call has ended that must not be called again
        self._waits: set[int] = set()  # the streams of calls that only wait

    @contextmanager
    def _open(self, shutdown: trio.Event | None) -> Iterator[None]:
        # The record ends before the socket: another file may get the number of a closed fd,
        # and must not be sent to the next fork server as a copy of this connection.
        try:
            with super()._open(shutdown):
                yield
        except BaseException as exc:
            cancelled = not isinstance(exc, Exception)
            if cancelled and not (shutdown is not None and shutdown.is_set()):
                self._record.leave()  # the whole server ends in an error, and is replaced
            raise
        finally:
            self._socket.detach()
            self._record.close()

    async def _read_loop(self, lasting: trio.Nursery, listening: trio.Nursery) -> None:
        if self._resumed:
            self._restore(lasting, listening)
        while not self._gone:
            while self._is_full:
                await self._held_reader.park()
            await trio.lowlevel.wait_readable(self._fd)
            self._read(lasting, listening)
            if self._resumed:
                self._end_replay()

    @property
    def _is_full(self) -> bool:
        return len(self._outgoing) - self._offset > UNSENT_LIMIT

    def _end_replay(self) -> None:
        """Handle requests as new ones: no killed server has handled a part of them."""
        self._resumed = False
        self._immediate = self._methods.immediate
        self._called.clear()

    def _restore(self, lasting: trio.Nursery, listening: trio.Nursery) -> None:
        """Send the rest of the saved replies, and call the methods of the saved calls again.

        :raises InvalidError: the state is damaged.
        """
        state = CallState.decode(self._record.load())
        self._outgoing = state.unsent[self._record.sent - state.at :]
        data, discard = self._record.unhandled
        self._keep(data or discard)
        self._immediate = self._methods.repeated
        self._replaying = True
        self._begun = set(state.begun)
        for event in state.calls:
            self._dispatch(event, lasting, listening)
        self._called = {event.stream_id for event in state.calls}
        self._changed = self._records.keys() != self._called
        self._flush()
        self._replaying = False  # a call of these methods that is not in the state never began
        if self._keeps:
            self._protocol.resume(discard)
            self._take(data, lasting, listening)
            self._end_replay()
        elif not self._is_full:
            self._read(lasting, listening)
            self._end_replay()

    def _keep(self, incomplete: object) -> None:
        """Receive into the record while it has an ``incomplete`` frame."""
        self._keeps = bool(incomplete)
        self._receive = self._record.receive if incomplete else self._peek

    def _take(
        self, data: bytes | bytearray, lasting: trio.Nursery, listening: trio.Nursery
    ) -> None:
        if self._keeps:
            super()._take(data, lasting, listening)
            incomplete = self._protocol.incomplete
            self._record.advance(*incomplete)
            self._keep(any(incomplete))
            return
        whole = extent(data)
        super()._take(data[:whole], lasting, listening)
        if whole:
            self._skip(whole)
        else:
            self._keep(True)

    def _skip(self, count: int) -> None:
        """Drop bytes from the socket.

        :raises OSError: the connection is broken.
        """
        while count:
            dropped = self._socket.recv(count)
            if not dropped:
                raise ConnectionResetError
            count -= len(dropped)

    def _dispatch(
        self, event: RequestReceived, lasting: trio.Nursery, listening: trio.Nursery
    ) -> None:
        if event.stream_id not in self._called:
            super()._dispatch(event, lasting, listening)

    def _started(self, event: RequestReceived, stream: Stream[Any, Any]) -> None:
        call = encode_call(event)
        stream.begun = self._replaying and event.stream_id in self._begun
        stream.record_begin = partial(self._begin, event.stream_id)
        self._records[event.stream_id] = begun_call(call) if stream.begun else call
        if event.method in self._methods.cancellable:
            self._waits.add(event.stream_id)
        self._changed = True

    def _begin(self, stream_id: int) -> None:
        """Save that a call begins to have effects."""
        if not self._gone and stream_id not in self._begun:
            self._begun.add(stream_id)
            self._records[stream_id] = begun_call(self._records[stream_id])
            self._save(b"")

    def _ended(self, stream_id: int) -> None:
        del self._records[stream_id]
        self._begun.discard(stream_id)
        if stream_id in self._waits:
            self._waits.remove(stream_id)
        else:
            self._has_ended = True
        self._changed = True

    def _flush(self) -> None:
        """Send queued bytes without waiting, and save the calls.

        The replies are saved first if a method must not be called again after them.
        """
        if self._gone:
            return
        data = self._protocol.data_to_send()
        if not data and not self._changed:
            return
        is_short = 0 < len(data) <= self._whole
        if is_short and self._idle_writer and not self._outgoing:
            if self._has_ended:
                self._save(data)
            data = self._write_now(data)
            if not data:
                if self._outgoing or self._changed:
                    self._outgoing = b""
                    self._save(b"")
                return
            self._outgoing = b""
        self._save(data)
        if self._idle_writer:
            with suppress(OSError):  # as above
                self._send()
            if self._outgoing:
                self._idle_writer.unpark()

    def _save(self, data: bytes) -> None:
        """Save the calls, and the unsent replies with ``data`` after them."""
        self._outgoing = self._outgoing[self._offset :] + data
        self._offset = 0
        calls = ",".join(self._records.values())
        self._record.save(encode_state(calls, self._record.sent, self._outgoing))
        self._changed = self._has_ended = False

    def _send(self) -> None:
        """Send as many bytes of the saved replies as the socket accepts.

        :raises OSError: it takes nothing, or the peer is gone.
        """
        while self._outgoing:
            self._offset += self._record.send(self._outgoing, self._offset)
            if self._offset == len(self._outgoing):
                self._outgoing, self._offset = b"", 0

    async def _write_loop(self, scope: trio.CancelScope) -> None:
        try:
            while True:
                if self._outgoing:
                    await trio.lowlevel.wait_writable(self._fd)
                    with suppress(BlockingIOError):
                        self._send()
                    self._held_reader.unpark()
                elif self._draining and not self._running:
                    return
                else:
                    await self._idle_writer.park()
        except (OSError, trio.ClosedResourceError):
            self._gone = True
            scope.cancel()
