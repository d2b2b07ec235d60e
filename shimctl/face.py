"""What differs between trio, asyncio and threads, for the code that is the same on all.

Launching and finding shims take the same steps everywhere; a face is how to wait
in between.

Source: none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from shimctl import client

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from contextlib import AbstractAsyncContextManager

    from shimctl.client import Shim

# Each takes a file descriptor, and a process may have no more than 1024 of those: a
# shim that could not be asked for want of one would look dead.
AT_ONCE = 128


class Face(Protocol):
    """How to wait; see :class:`Trio`."""

    def connect(
        self, address: str, *, namespace: str = "", timeout: float = client.CONNECT_TIMEOUT
    ) -> AbstractAsyncContextManager[Shim]: ...

    async def readable(self, fd: int, seconds: float) -> bool: ...

    async def insist(self, work: Callable[[], Awaitable[None]], seconds: float) -> None: ...

    async def together(self, works: Iterable[Callable[[], Awaitable[None]]]) -> None: ...


class Trio:
    """Waiting on trio, which is loaded at the first wait."""

    connect = staticmethod(client.connect)

    async def readable(self, fd: int, seconds: float) -> bool:
        """Wait until ``fd`` is readable, at most so long; say whether it is."""
        import trio

        with trio.move_on_after(seconds):
            await trio.lowlevel.wait_readable(fd)
            return True
        return False

    async def insist(self, work: Callable[[], Awaitable[None]], seconds: float) -> None:
        """Do ``work`` even where we are cancelled already, but not for longer than this."""
        import trio

        with trio.move_on_after(seconds, shield=True):
            await work()

    async def together(self, works: Iterable[Callable[[], Awaitable[None]]]) -> None:
        """Do ``works`` beside each other, ``AT_ONCE`` of them; return when the last is done."""
        import trio

        limiter = trio.CapacityLimiter(AT_ONCE)

        async def one(work: Callable[[], Awaitable[None]]) -> None:
            async with limiter:
                await work()

        async with trio.open_nursery() as nursery:
            for work in works:
                nursery.start_soon(one, work)


TRIO = Trio()
