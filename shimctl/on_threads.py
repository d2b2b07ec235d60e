"""The backend for plain threads, and the functions that make the library's blocking.

A coroutine on this backend never suspends: it blocks its thread.  Neither trio nor asyncio
is imported.  Each function here has the parameters of the one it is made from, also for a
type checker.
"""

from __future__ import annotations

import functools
import select
import threading
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, overload

from shim.ttrpc import blocking as ttrpc
from shimctl.backend import AT_ONCE, Backend

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from shim.ttrpc.calls import Channel
    from shimctl.backend import Portable, PortableBlock

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")

_JOIN = 10  # s; a thread that waits longer ends with its connection


class Threads(Backend):
    """Connecting and waiting in plain threads."""

    framework, face = "", "shimctl.blocking"

    async def dial(self, address: str, timeout: float) -> socket.socket:
        return ttrpc.connect(address, timeout)

    @asynccontextmanager
    async def open_channel(self, dialled: Any) -> AsyncIterator[Channel]:
        with ttrpc.open_channel(dialled) as channel:
            yield channel

    async def wait_readable(self, fd: int, seconds: float | None = None) -> bool:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(None if seconds is None else max(0, seconds) * 1000))

    def closing(self, fd: int) -> None:
        pass  # a thread that polls is not woken; it reads EOF before the fd is closed

    async def run_shielded(self, work: Callable[[], Awaitable[None]], seconds: float) -> None:
        # Nothing cancels a thread, and each step of ``work`` has its own time limit.
        await work()

    async def run_all(self, works: Iterable[Callable[[], Awaitable[None]]]) -> None:
        from concurrent.futures import ThreadPoolExecutor

        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            list(pool.map(lambda work: ttrpc.run(_coroutine(work)), works))
        finally:  # after an interrupt, the works that have not begun are left out
            pool.shutdown(cancel_futures=True)

    @asynccontextmanager
    async def beside(self, work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        # A daemon, so that a work that hangs does not delay the end of the interpreter.
        thread = threading.Thread(target=lambda: ttrpc.run(_coroutine(work)), daemon=True)
        thread.start()
        try:
            yield
        finally:
            thread.join(_JOIN)

    async def in_thread(self, work: Callable[[], R]) -> R:
        return work()

    async def run_on_trio(self, work: Callable[[], Awaitable[R]]) -> R:
        import trio

        return trio.run(_coroutine, work)


THREADS = Threads()


async def _coroutine(work: Callable[[], Awaitable[R]]) -> R:
    return await work()


def run(call: Coroutine[Any, Any, R]) -> R:
    """Run a coroutine of the library in this thread, and return its result.

    :raises WrongFaceError: this thread runs an event loop, which that would block.
    """
    try:
        THREADS.check()
    except BaseException:
        call.close()
        raise
    return ttrpc.run(call)


def function(portable: Portable[P, R]) -> Callable[P, R]:
    """Return the function for threads."""
    waiting = portable.on(THREADS)

    @functools.wraps(waiting)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return run(waiting(*args, **kwargs))

    return call


@overload
def method(
    of: Callable[Concatenate[S, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Any, P], R]: ...


@overload
def method(
    of: Callable[Concatenate[S, P], Coroutine[Any, Any, R]], wrap: Callable[[R], T]
) -> Callable[Concatenate[Any, P], T]: ...


def method(
    of: Callable[Concatenate[S, P], Coroutine[Any, Any, Any]],
    wrap: Callable[[Any], Any] | None = None,
) -> Callable[Concatenate[Any, P], Any]:
    """Return the method for threads of a class whose ``inner`` is an ``S``.

    ``wrap`` converts its result.
    """

    @functools.wraps(of)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        result = run(of(self.inner, *args, **kwargs))
        return result if wrap is None else wrap(result)

    return call


def block(
    portable: PortableBlock[P, R], wrap: Callable[[R], S]
) -> Callable[P, AbstractContextManager[S]]:
    """Return the block for threads, for ``with``; ``wrap`` converts its value."""
    waiting = portable.on(THREADS)

    @functools.wraps(waiting)
    @contextmanager
    def call(*args: P.args, **kwargs: P.kwargs) -> Iterator[S]:
        with _Entered(waiting(*args, **kwargs)) as value:
            yield wrap(value)

    return call


class _Entered(AbstractContextManager[R]):
    def __init__(self, manager: AbstractAsyncContextManager[R]) -> None:
        self._manager = manager

    def __enter__(self) -> R:
        return run(_coroutine(self._manager.__aenter__))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        return ttrpc.run(_coroutine(lambda: self._manager.__aexit__(kind, error, trace)))


def block_method(
    of: Callable[Concatenate[S, P], AbstractAsyncContextManager[R]], wrap: Callable[[R], T]
) -> Callable[Concatenate[Any, P], AbstractContextManager[T]]:
    """Return the block for threads of a method that returns an asynchronous one."""

    @functools.wraps(of)
    @contextmanager
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        with _Entered(of(self.inner, *args, **kwargs)) as value:
            yield wrap(value)

    return call
