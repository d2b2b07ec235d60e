"""The interface that lets one implementation run on trio, on asyncio and in threads.

Launching and finding shims take the same steps on all three.  A backend implements the
waiting between the steps.

Source: none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from shimctl import client

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from contextlib import AbstractAsyncContextManager

    from shimctl.client import Shim

# The most shims that are probed at once.  Each probe uses a file descriptor, and a process
# often may have 1024 at most.  A probe that gets none would report a live shim as dead.
AT_ONCE = 128


class Backend(Protocol):
    """Connecting and waiting on one framework; :class:`Trio` describes the methods."""

    def connect(
        self, address: str, *, namespace: str = "", timeout: float = client.CONNECT_TIMEOUT
    ) -> AbstractAsyncContextManager[Shim]: ...

    async def wait_readable(self, fd: int, seconds: float) -> bool: ...

    async def run_shielded(self, work: Callable[[], Awaitable[None]], seconds: float) -> None: ...

    async def run_all(self, works: Iterable[Callable[[], Awaitable[None]]]) -> None: ...


class Trio:
    """The backend for trio, which is imported at the first wait."""

    connect = staticmethod(client.connect)

    async def wait_readable(self, fd: int, seconds: float) -> bool:
        """Wait up to ``seconds`` until ``fd`` is readable; return whether it is."""
        import trio

        with trio.move_on_after(seconds):
            await trio.lowlevel.wait_readable(fd)
            return True
        return False

    async def run_shielded(self, work: Callable[[], Awaitable[None]], seconds: float) -> None:
        """Run ``work`` for up to ``seconds``, even if the caller is cancelled."""
        import trio

        with trio.move_on_after(seconds, shield=True):
            await work()

    async def run_all(self, works: Iterable[Callable[[], Awaitable[None]]]) -> None:
        """Run ``works`` concurrently, ``AT_ONCE`` at most; return when all are done."""
        import trio

        limiter = trio.CapacityLimiter(AT_ONCE)

        async def one(work: Callable[[], Awaitable[None]]) -> None:
            async with limiter:
                await work()

        async with trio.open_nursery() as nursery:
            for work in works:
                nursery.start_soon(one, work)


TRIO = Trio()
