"""The backend for asyncio; see :mod:`shimctl.backend`.  trio is not imported."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from shim.ttrpc import aio as ttrpc
from shimctl.backend import AT_ONCE, Backend

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
    from contextlib import AbstractAsyncContextManager

    from shim.ttrpc.calls import Channel

R = TypeVar("R")


class Asyncio(Backend):
    """Connecting and waiting on asyncio."""

    framework, face = "asyncio", "shimctl.aio"

    def __init__(self) -> None:
        # The waits for each fd of a loop.
        self._waits: dict[tuple[asyncio.AbstractEventLoop, int], set[asyncio.Event]] = {}

    async def dial(self, address: str, timeout: float) -> socket.socket:
        return await ttrpc.connect(address, timeout)

    def open_channel(self, dialled: Any) -> AbstractAsyncContextManager[Channel]:
        return ttrpc.open_channel(dialled)

    async def wait_readable(self, fd: int, seconds: float | None = None) -> bool:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        key = loop, fd
        self._waits.setdefault(key, set()).add(ready)
        loop.add_reader(fd, ready.set)
        try:
            async with asyncio.timeout(seconds):
                await ready.wait()
        except TimeoutError:
            return False
        finally:
            if waits := self._waits.get(key):  # else it was closed, and the number may be reused
                loop.remove_reader(fd)
                waits.discard(ready)
                if not waits:
                    del self._waits[key]
        return True

    def closing(self, fd: int) -> None:
        loop = asyncio.get_running_loop()
        for ready in self._waits.pop((loop, fd), ()):
            ready.set()
        loop.remove_reader(fd)

    async def run_shielded(self, work: Callable[[], Awaitable[None]], seconds: float) -> None:
        async def bounded() -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await work()

        await _finish(asyncio.create_task(bounded()))

    async def run_all(self, works: Iterable[Callable[[], Awaitable[None]]]) -> None:
        limiter = asyncio.Semaphore(AT_ONCE)

        async def one(work: Callable[[], Awaitable[None]]) -> None:
            async with limiter:
                await work()

        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(one(work))

    @asynccontextmanager
    async def beside(self, work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        async def running() -> None:
            await work()

        task = asyncio.create_task(running())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def in_thread(self, work: Callable[[], R]) -> R:
        return await _finish(asyncio.create_task(asyncio.to_thread(work)))

    async def run_on_trio(self, work: Callable[[], Awaitable[R]]) -> R:
        import trio

        cancelled = threading.Event()
        scope = trio.CancelScope()
        tokens: list[trio.lowlevel.TrioToken] = []

        async def main() -> R:
            tokens.append(trio.lowlevel.current_trio_token())
            with scope:
                if cancelled.is_set():
                    scope.cancel()
                return await work()
            raise asyncio.CancelledError

        task = asyncio.create_task(asyncio.to_thread(trio.run, main))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled.set()
            for token in tokens:
                with suppress(trio.RunFinishedError):
                    token.run_sync_soon(scope.cancel)
            with suppress(Exception):
                await _finish(task)
            raise


ASYNCIO = Asyncio()


async def _finish(task: asyncio.Task[R]) -> R:
    """Wait for ``task``; a cancellation of the caller takes effect when it has ended."""
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
        except BaseException:
            break  # the task's own error
    result = task.result()
    if cancelled:
        raise asyncio.CancelledError
    return result
