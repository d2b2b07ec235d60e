"""One task that waits until any of many sockets is readable.

With a reading task for each connection, requests of a hundred clients at once would cost
a hundred turns of trio's scheduler; with one task they cost a few.

Source: epoll(7), "Possible pitfalls": an fd that is always ready does not starve the
others, since the kernel moves a reported fd to the end of its list.
"""

from __future__ import annotations

import select
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import trio

from shim.scope import background

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

# Sockets that are read from before other tasks run.
_AT_ONCE = 16


class Readiness:
    """Calls a callback for each readable socket.  Use :func:`open_readiness`.

    Callbacks must not raise.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}

    @contextmanager
    def calling(self, fd: int, callback: Callable[[], None]) -> Iterator[None]:
        """In the block, call ``callback`` when ``fd`` is readable, or at its end."""
        self._epoll.register(fd, select.EPOLLIN)
        self._callbacks[fd] = callback
        try:
            yield
        finally:
            del self._callbacks[fd]
            self._epoll.unregister(fd)

    async def run(self) -> None:
        """Call the callbacks until cancelled."""
        ours = self._epoll.fileno()
        while True:
            await trio.lowlevel.wait_readable(ours)
            for fd, _ in self._epoll.poll(0, _AT_ONCE):
                self._callbacks[fd]()

    def close(self) -> None:
        trio.lowlevel.notify_closing(self._epoll.fileno())
        self._epoll.close()


@asynccontextmanager
async def open_readiness() -> AsyncIterator[Readiness]:
    """Call the callbacks for the length of the block."""
    readiness = Readiness()
    try:
        async with background(readiness.run):
            yield readiness
    finally:
        readiness.close()
