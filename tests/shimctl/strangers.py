"""Servers that may listen on a socket that should be a shim's, each in a thread.

They use no code of ours: the peers of the library's tests must not share its mistakes.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def frame(stream_id: int, kind: int, payload: bytes, length: int | None = None) -> bytes:
    return struct.pack(">IIBB", len(payload) if length is None else length, stream_id, kind, 0) + (
        payload
    )


def _hold(sock: socket.socket) -> None:
    """Take all that comes and answer nothing, until the other side is gone."""
    with contextlib.suppress(OSError):
        while sock.recv(65536):
            pass


def _saying(data: bytes, *, stay: bool) -> Callable[[socket.socket], None]:
    def converse(sock: socket.socket) -> None:
        if sock.recv(65536):
            sock.sendall(data)
            if stay:
                _hold(sock)

    return converse


HTTP = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n\r\nwhat?\r\n"

# The behaviour of each, by name.
STRANGERS: dict[str, Callable[[socket.socket], None]] = {
    "closes at once": lambda _: None,
    "closes after the request": _saying(b"", stay=False),
    "never answers": _hold,
    "an HTTP server": _saying(HTTP, stay=True),
    "an HTTP server that closes": _saying(HTTP, stay=False),
    "an SSH server": _saying(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", stay=True),
    "garbage": _saying(bytes(range(255, 0, -1)) * 40, stay=True),
    "half a header": _saying(frame(1, 2, b"")[:7], stay=True),
    "a frame cut short": _saying(frame(1, 2, b"x" * 100)[:-1], stay=False),
    "an oversize frame": _saying(frame(1, 2, b"", 5 << 20), stay=True),
    "no Response": _saying(frame(1, 2, b"\xff\xff\xff"), stay=True),
    "no StateResponse": _saying(frame(1, 2, b"\x12\x03\xff\xff\xff"), stay=True),
    "a stream nobody opened": _saying(frame(77, 2, b""), stay=True),
    "an even stream": _saying(frame(2, 2, b""), stay=True),
    "another kind of frame": _saying(frame(1, 9, b"hello"), stay=True),
}


@contextmanager
def listening(path: Path, converse: Callable[[socket.socket], None]) -> Iterator[str]:
    """Run ``converse`` for every connection to ``path``; give the address."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    threads: list[threading.Thread] = []
    socks: list[socket.socket] = []

    def meet(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            converse(sock)
        sock.close()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                socks.append(sock)
                thread = threading.Thread(target=meet, args=(sock,))
                threads.append(thread)
                thread.start()

    with listener:
        listener.bind(str(path))
        listener.listen()
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield f"unix://{path}"
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            for sock in socks:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            accepting.join(20)
            for thread in threads:
                thread.join(20)
