"""The streams of an exec or attach: channels in a websocket to the CRI's streaming server.

Each message is one byte with the channel, then the data.

Sources: RFC 6455; Kubernetes' "v4.channel.k8s.io" subprotocol.
"""

from __future__ import annotations

import base64
import os
import socket
import struct
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

STDIN, STDOUT, STDERR, ERROR = range(4)  # the last has the result at the end
_BINARY, _CLOSE = 2, 8
_FINAL, _MASKED = 0x80, 0x80
_TIMEOUT = 30  # s


class Stream:
    def __init__(self, sock: socket.socket, reader: BinaryIO) -> None:
        self._sock = sock
        self._reader = reader

    def write(self, data: bytes) -> None:
        """Write at most 124 bytes to stdin."""
        payload = bytes([STDIN]) + data
        assert len(payload) < 126
        # A client must mask; a mask of zeros changes nothing.
        head = bytes([_FINAL | _BINARY, _MASKED | len(payload)])
        self._sock.sendall(head + bytes(4) + payload)

    def read(self) -> tuple[int, bytes] | None:
        """Return the next message and its channel; None at the end."""
        while head := self._reader.read(2):
            size = head[1]
            if size == 126:
                (size,) = struct.unpack(">H", self._reader.read(2))
            elif size == 127:
                (size,) = struct.unpack(">Q", self._reader.read(8))
            payload = self._reader.read(size)
            if head[0] & 0xF == _CLOSE:
                return None
            if head[0] & 0xF == _BINARY:
                return payload[0], payload[1:]
        return None

    def read_all(self) -> dict[int, bytes]:
        """Read to the end; return the data by channel."""
        said: dict[int, bytes] = defaultdict(bytes)
        while message := self.read():
            said[message[0]] += message[1]
        return said


@contextmanager
def open_stream(url: str) -> Iterator[Stream]:
    """Connect to the URL of an exec or attach for the block."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    with (
        socket.create_connection((parts.hostname, parts.port), _TIMEOUT) as sock,
        sock.makefile("rb") as reader,
    ):
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET {parts.path} HTTP/1.1",
            f"Host: {parts.netloc}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Protocol: v4.channel.k8s.io",
            f"Origin: http://{parts.netloc}",
        ]
        sock.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = [reader.readline()]
        while answer[-1].strip():
            answer.append(reader.readline())
        assert b" 101 " in answer[0], answer
        yield Stream(sock, reader)
