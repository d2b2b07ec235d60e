"""ttrpc calls on a blocking socket: nothing but the call is in the time it takes.

A client with tasks costs more than the calls worth timing to the microsecond
(State takes 0.1 ms), and would hide the difference between two shims.
"""

from __future__ import annotations

import select
import socket
import time
from typing import TYPE_CHECKING, Self, TypeVar

from grpclib.const import Status

from shim.linux.sockets import socket_path
from shim.ttrpc.protocol import NAMESPACE, ClientProtocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from google.protobuf.message import Message

    from shim.ttrpc.protocol import ResponseReceived

Reply = TypeVar("Reply", bound="Message")

LIMIT = 10.0  # seconds a call may take


def service_of(version: int) -> str:
    """Return the full name of the Task service; no shim of Go's serves both versions."""
    return f"containerd.task.v{version}.Task"


class CallError(Exception):
    """A shim refused a call, or did not answer it."""


class Caller:
    """One connection, one call at a time.  A context manager."""

    def __init__(self, address: str, namespace: str, version: int) -> None:
        self._service = service_of(version)
        self._protocol = ClientProtocol()
        self._metadata = {NAMESPACE: namespace}
        path = socket_path(address)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(LIMIT)
            self.sock.connect(path or "\0" + address)
        except BaseException:
            self.sock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.sock.close()

    def call(self, method: str, request: Message, reply_type: type[Reply]) -> Reply:
        """Call and return the reply.

        :raises CallError: the shim refused.
        """
        payload = self.raw(method, request.SerializeToString())
        return reply_type.FromString(payload)

    def raw(self, method: str, payload: bytes) -> bytes:
        self.send(method, payload)
        while True:
            for answer in self.receive():
                return answer.payload

    def send(self, method: str, payload: bytes) -> None:
        self.sock.sendall(self.encode(method, payload))

    def encode(self, method: str, payload: bytes) -> bytes:
        return self._protocol.encode_request(
            self._service, method, payload, metadata=self._metadata
        )[1]

    def receive(self) -> list[ResponseReceived]:
        """Read the available bytes.

        :raises CallError: an error, or the end of the connection.
        """
        data = self.sock.recv(65536)
        if not data:
            raise CallError("the shim closed the connection")
        answers = self._protocol.receive_data(data)
        for answer in answers:
            if answer.status is not Status.OK:
                raise CallError(f"{answer.status.name}: {answer.message}")
        return answers

    def time(self, method: str, request: Message, times: int) -> list[float]:
        """Call ``times`` times; return the milliseconds each took."""
        payload = request.SerializeToString()
        taken = []
        for _ in range(times):
            frame = self.encode(method, payload)
            began = time.perf_counter()
            self.sock.sendall(frame)
            while not self.receive():
                pass
            taken.append((time.perf_counter() - began) * 1000)
        return taken


def crowd(callers: Sequence[Caller], method: str, request: Message, times: int) -> list[float]:
    """Let every caller call ``times`` times, all at once; return each call's milliseconds.

    One call of each is under way all the time.

    :raises CallError: a call failed, or none was answered within the limit.
    """
    payload = request.SerializeToString()
    frames = {c.sock.fileno(): [c.encode(method, payload) for _ in range(times)] for c in callers}
    by_fd = {c.sock.fileno(): c for c in callers}
    began: dict[int, float] = {}
    taken: list[float] = []
    with select.epoll() as epoll:
        for fd, caller in by_fd.items():
            epoll.register(fd, select.EPOLLIN)
            # Ids increase, so the frames must go in the order they were made in.
            frames[fd].reverse()
            began[fd] = time.perf_counter()
            caller.sock.sendall(frames[fd].pop())
        while len(taken) < len(callers) * times:
            ready = epoll.poll(LIMIT)
            if not ready:
                raise CallError(f"no answer to {method} in {LIMIT:g} s")
            for fd, _ in ready:
                for _answer in by_fd[fd].receive():
                    now = time.perf_counter()
                    taken.append((now - began[fd]) * 1000)
                    if frames[fd]:
                        began[fd] = time.perf_counter()
                        by_fd[fd].sock.sendall(frames[fd].pop())
    return taken
