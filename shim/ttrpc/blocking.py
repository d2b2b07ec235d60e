"""ttrpc for plain threads: the coroutines of its channel never suspend.

An adapter of :mod:`.calls` and :mod:`.protocol` for threads.  :func:`run` drives a
coroutine of such a channel: instead of suspending, the coroutine blocks its thread.

Several threads may share a channel.  One of the waiting threads reads for all of them and
distributes the answers; when it has its own answer, another waiting thread reads.  So a
Wait in one thread does not delay a Kill in another, and no extra thread reads.

The daemon never imports this module, which needs neither trio nor asyncio.
"""

from __future__ import annotations

import math
import os
import select
import socket
import threading
import time
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from shim.linux import sockets
from shim.linux.peers import check_server
from shim.ttrpc import calls
from shim.ttrpc.calls import Call, ConnectionLostError, Metadata, Reply, Request, too_late

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator

Result = TypeVar("Result")

_CHUNK = 65536  # bytes; one read takes many replies
_LONGEST = 86400.0  # s; the longest single wait; longer ones are repeated


def run(call: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine in this thread, and return its result.

    :raises RuntimeError: it awaits something other than a call on a blocking channel.
    """
    try:
        call.send(None)
    except StopIteration as done:
        result: Result = done.value
        return result
    call.close()
    raise RuntimeError(f"cannot run {call!r}: it suspends; await only calls on a blocking channel")


def connect(address: str, timeout: float = 5) -> socket.socket:
    """Connect to ``address`` within ``timeout`` seconds.

    :raises UnavailableError: no process listens there.
    :raises TimedOutError: a process listens, but did not accept the connection.
    :raises InvalidError: another user than root or our own serves it.
    """
    with sockets.connecting(address, timeout, time.monotonic) as (sock, pauses):
        for pause in pauses:
            time.sleep(pause)
        check_server(sock, address)
    return sock


def remaining(deadline: float) -> float:
    """Return the seconds until ``deadline``, at most ``_LONGEST``."""
    return min(max(deadline - time.monotonic(), 0), _LONGEST)


class Answer:
    """The event of one call.  Hold the channel's lock for all but :meth:`wait`."""

    __slots__ = ("_channel", "deadline", "done", "leads", "wake")

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.deadline = math.inf  # on the monotonic clock
        self.done = False
        self.leads = False  # its thread reads for all
        self.wake: threading.Event | None = None  # set while another thread reads

    def set(self) -> None:
        self.done = True
        if self.wake is not None:
            self.wake.set()

    async def wait(self) -> None:
        """Block until the answer has arrived.

        :raises TimeoutError: the deadline came first.
        """
        self._channel.wait_answer(self)


class Channel(calls.Channel):
    """One connection and the calls on it, by any number of threads.  See :func:`open_channel`."""

    def __init__(self, sock: socket.socket, metadata: Metadata | None = None) -> None:
        super().__init__(metadata)
        self._sock = sock
        self._lock = threading.Lock()  # protects all attributes below
        self._lost = False
        self._closed = False
        self._led = False  # a thread reads
        self._followers: dict[Answer, None] = {}  # the waiting threads, in order
        self._begun = b""  # the rest of a partly sent frame
        self._unsent: dict[int, bytes] = {}  # whole unsent frames, by stream
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()  # used by the reading thread
        self._poll.register(self._wake, select.POLLIN)

    def event(self) -> Answer:
        """Return a new event for one call."""
        return Answer(self)

    @asynccontextmanager
    async def _open(self, call: Call[Request, Reply]) -> AsyncIterator[Call[Request, Reply]]:
        if call.timeout is not None:
            if call.timeout <= 0:
                raise too_late(call)
            assert isinstance(call.answered, Answer)
            call.answered.deadline = time.monotonic() + call.timeout
        try:
            yield call
        except TimeoutError:
            raise too_late(call) from None
        finally:
            with self._lock:
                self._forget(call)
                if call.stream_id is not None:
                    self._unsent.pop(call.stream_id, None)

    async def send(self, call: Call[Any, Any], payload: bytes) -> None:
        # Do not wait for a peer that does not read.  The reading thread sends the rest,
        # frame by frame and in order.
        with self._lock:
            if self._lost:
                raise ConnectionLostError
            frame = call.encode(self._protocol, payload)
            assert call.stream_id is not None
            self._calls[call.stream_id] = call
            self._unsent[call.stream_id] = frame
            self._flush()
            if self._led and (self._begun or self._unsent):
                os.eventfd_write(self._wake, 1)

    def _flush(self) -> None:
        try:
            while self._begun or self._unsent:
                if not self._begun:
                    self._begun = self._unsent.pop(next(iter(self._unsent)))
                sent = self._sock.send(self._begun, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                self._begun = self._begun[sent:]
        except BlockingIOError:
            pass
        except OSError:
            # The reading thread also finds the end; before that it delivers the replies
            # that have arrived.
            self._begun = b""
            self._unsent.clear()

    def wait_answer(self, answer: Answer) -> None:
        """Block until ``answer`` has arrived; read for all threads if no other one reads.

        :raises TimeoutError: its deadline came first.
        """
        with self._lock:
            if answer.done:
                return
            if self._led:
                answer.wake = threading.Event()
                self._followers[answer] = None
            else:
                self._led = answer.leads = True
        try:
            if answer.wake is not None:
                self._follow(answer.wake, answer)
            while answer.leads and not answer.done and answer.deadline > time.monotonic():
                self._read(remaining(answer.deadline))
        finally:
            with self._lock:
                self._followers.pop(answer, None)
                if answer.leads:
                    self._pass_on()
        if not answer.done:
            raise TimeoutError

    def _follow(self, wake: threading.Event, answer: Answer) -> None:
        while not wake.wait(remaining(answer.deadline)):
            if answer.deadline <= time.monotonic():
                return

    def _pass_on(self) -> None:
        while self._followers:
            follower = next(iter(self._followers))
            del self._followers[follower]
            if not follower.done and follower.wake is not None:
                follower.leads = True
                follower.wake.set()
                return
        self._led = False
        if self._closed:
            self._release()

    def _read(self, seconds: float) -> None:
        """Wait at most ``seconds`` for data of the peer, and deliver the replies in it."""
        with self._lock:
            unsent = bool(self._begun or self._unsent)
        self._poll.register(self._sock, select.POLLIN | (select.POLLOUT if unsent else 0))
        ready = dict(self._poll.poll(math.ceil(seconds * 1000)))
        if self._wake in ready:
            os.eventfd_read(self._wake)
        if not ready.get(self._sock.fileno()):
            return
        try:
            data = self._receive_some()
            with self._lock:
                self._flush()
                if data == b"" or (data and not self._receive(data)):
                    self._lose()
        except BaseException:
            # Data may have been read and lost, so the rest of the stream is unusable.
            with self._lock:
                self._lose()
            raise

    def _receive_some(self) -> bytes | None:
        """Return the available bytes: None if there are none, ``b""`` at the end."""
        try:
            return self._sock.recv(_CHUNK, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _lose(self) -> None:
        self._lost = True
        self._begun = b""
        self._unsent.clear()
        self._lose_calls()

    def close(self) -> None:
        """End every call, in every thread, with ConnectionLostError; may be called again."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._lose()
            if self._led:
                os.eventfd_write(self._wake, 1)  # the reading thread closes
            else:
                self._release()

    def _release(self) -> None:
        self._sock.close()
        os.close(self._wake)


@contextmanager
def open_channel(sock: socket.socket, metadata: Metadata | None = None) -> Iterator[Channel]:
    """Own ``sock`` for the block; close it and end every call at the end of the block."""
    channel = Channel(sock, metadata)
    try:
        yield channel
    finally:
        channel.close()
