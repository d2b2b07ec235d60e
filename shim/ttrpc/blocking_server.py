"""A ttrpc server in one thread: it handles one request at a time.

The methods are those of :mod:`.services`, and must never suspend.  While one runs, no
other request is served: a manager acknowledges events one after the other.  A client
that sends half a frame, or does not read its replies, does not delay other clients.

Source: selectors: its events are level-triggered.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from grpclib.exceptions import ProtocolError

from shim import log
from shim.errors import TimedOutError, status_of
from shim.ttrpc.blocking import run
from shim.ttrpc.protocol import RequestReceived, ServerProtocol
from shim.ttrpc.services import (
    UNSENT_LIMIT,
    PeerRefusedError,
    accept,
    check_peer,
    expected,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from grpclib.const import Handler

_CHUNK = 65536  # bytes
_NO_MORE_FDS = 0.1  # s before the next attempt to accept


@contextmanager
def open_server(
    listener: socket.socket, handlers: Mapping[str, Handler], *, drain: float
) -> Iterator[None]:
    """Own ``listener``, and serve our own user's processes on it, in a thread, for the block.

    At the end of the block, a method that still runs has ``drain`` seconds to return.

    :raises TimedOutError: the method did not return; its thread continues.
    """
    server = _Server(listener, handlers)
    thread = threading.Thread(target=server.run, name="ttrpc server", daemon=True)
    try:
        thread.start()
    except BaseException:
        server.close()
        raise
    try:
        yield
    finally:
        server.stop()
        thread.join(drain)
        if thread.is_alive():
            raise TimedOutError(
                f"cannot stop the ttrpc server: a method still runs after {drain:g} s; "
                "make it return"
            )


class _Server:
    def __init__(self, listener: socket.socket, handlers: Mapping[str, Handler]) -> None:
        self._listener = listener
        self._listener.setblocking(False)
        self._handlers = handlers
        self._peers: set[_Peer] = set()
        self._stopped = threading.Event()
        self._stop, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)

    def stop(self) -> None:
        """Make :meth:`run` return, after the method that runs now."""
        self._stopped.set()
        with suppress(OSError):
            self._stop.send(b"x")

    def run(self) -> None:
        try:
            while not self._stopped.is_set():
                for key, _ in self._selector.select():
                    if self._stopped.is_set():
                        return
                    if isinstance(key.data, _Peer):
                        self._converse(key.data)
                    elif key.fileobj is self._listener:
                        self._meet()
        finally:
            self.close()

    def close(self) -> None:
        for sock in (self._listener, self._stop, self._woken, *(p.sock for p in self._peers)):
            sock.close()
        self._selector.close()

    def _meet(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return  # the client has disconnected
        except OSError as exc:
            log.warning("cannot accept a connection", error=exc)
            time.sleep(_NO_MORE_FDS)
            return
        sock.setblocking(False)
        try:
            check_peer(sock)
        except PeerRefusedError as exc:
            log.warning("connection refused", error=exc)
            sock.close()
            return
        peer = _Peer(sock)
        self._peers.add(peer)
        self._selector.register(sock, selectors.EVENT_READ, peer)

    def _converse(self, peer: _Peer) -> None:
        """Read and answer the available requests, and send as much as the socket takes."""
        try:
            if peer.reads:
                data = peer.sock.recv(_CHUNK)
                if not data:
                    raise ConnectionResetError
                for event in peer.protocol.receive_data(data):
                    self._answer(peer.protocol, event)
            peer.flush()
        except BlockingIOError:
            return
        except OSError:
            self._selector.unregister(peer.sock)
            self._peers.discard(peer)
            peer.sock.close()
            return
        wanted = selectors.EVENT_WRITE if peer.protocol.unsent else 0
        peer.reads = peer.protocol.unsent <= UNSENT_LIMIT
        wanted |= selectors.EVENT_READ if peer.reads else 0
        self._selector.modify(peer.sock, wanted, peer)

    def _answer(self, protocol: ServerProtocol, event: RequestReceived) -> None:
        name = f"/{event.service}/{event.method}"
        try:
            handler, stream = accept(event, self._handlers, time.monotonic())
            run(handler.func(stream))
            if stream.reply is None:
                raise ProtocolError(f"{name} returned without a reply")  # noqa: TRY301 - the caller's answer, like the others
        except Exception as exc:  # every error is sent to the caller
            if not expected(exc):
                log.crash("method failed", exc, method=name)
            protocol.send_error(event.stream_id, *status_of(exc))
        else:
            protocol.send_reply(event.stream_id, stream.reply)


class _Peer:
    """One connection of a client."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.protocol = ServerProtocol()
        self.reads = True  # its replies are not stuck, so we read its requests

    def flush(self) -> None:
        data = self.protocol.data_to_send()
        sent = 0
        with suppress(BlockingIOError):
            sent = os.write(self.sock.fileno(), data) if data else 0
        self.protocol.put_back(data[sent:])
