"""Which of many sockets have something to read: one task waits for all of them.

With a task for each, a hundred peers that ask at once cost a hundred turns of trio's
scheduler; like this it is a few, and what is left of a call is the call.

Source: epoll(7), "Possible pitfalls": an fd that is always ready starves no other,
since what was told goes to the end of the kernel's list.
"""

from __future__ import annotations

import select
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import trio

from shim.scope import background

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

# Sockets that are read from before the other tasks have their turn.
_AT_ONCE = 16


class Readiness:
    """Calls back for each socket that is ready.  Use :func:`open_readiness`.

    Callbacks must not raise.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}

    @contextmanager
    def calling(self, fd: int, callback: Callable[[], None]) -> Iterator[None]:
        """In the block, call ``callback`` when there is something to read, the end too."""
        self._epoll.register(fd, select.EPOLLIN)
        self._callbacks[fd] = callback
        try:
            yield
        finally:
            del self._callbacks[fd]
            self._epoll.unregister(fd)

    async def run(self) -> None:
        """Call back for as long as this runs."""
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
    """Call back for the length of the block."""
    readiness = Readiness()
    try:
        async with background(readiness.run):
            yield readiness
    finally:
        readiness.close()
