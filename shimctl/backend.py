"""Lets each function of the library be written once for trio, asyncio and threads.

A function of the library is a coroutine function with a :class:`Backend` as its first
parameter.  :func:`portable` and :func:`portable_block` turn it into a function for
trio; its attribute ``on`` returns the same function for another backend.  A backend
implements connecting and waiting on one framework; the coroutines await nothing else.

Source: none.
"""

from __future__ import annotations

import functools
import inspect
import sys
from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from shimctl.failures import WrongFaceError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
    from types import TracebackType

    from shim.ttrpc.calls import Channel
    from shimctl.client import Shim

# The most shims that are probed at once.  Each probe uses a file descriptor, and a process
# often may have 1024 at most.  A probe that gets none would report a live shim as dead.
AT_ONCE = 128
CONNECT_TIMEOUT = 5  # s

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Backend(ABC):
    """Connecting and waiting on one framework."""

    framework: str  # empty for threads
    face: str  # the module to import

    def check(self) -> None:
        """Check that the caller runs on this framework.

        :raises WrongFaceError: it runs on another one.
        """
        if (running := running_framework()) != self.framework and (running or self.framework):
            raise WrongFaceError(self.face, running)

    def connect(
        self, address: str, *, namespace: str = "", timeout: float = CONNECT_TIMEOUT
    ) -> AbstractAsyncContextManager[Shim]:
        """Connect to the shim at ``address``; see :func:`shimctl.connect`."""
        from shimctl.client import connect

        return connect.on(self)(address, namespace=namespace, timeout=timeout)

    @abstractmethod
    async def dial(self, address: str, timeout: float) -> Any:
        """Return a socket or stream that is connected to ``address``, within ``timeout`` s."""

    @abstractmethod
    def open_channel(self, dialled: Any) -> AbstractAsyncContextManager[Channel]:
        """Own the result of :meth:`dial` for the block, as a channel."""

    @abstractmethod
    async def wait_readable(self, fd: int, seconds: float | None = None) -> bool:
        """Wait until ``fd`` is readable, up to ``seconds``; return whether it is."""

    @abstractmethod
    def closing(self, fd: int) -> None:
        """End every wait for ``fd``, which the caller closes next."""

    @abstractmethod
    async def run_shielded(self, work: Callable[[], Awaitable[None]], seconds: float) -> None:
        """Run ``work`` for up to ``seconds``, even if the caller is cancelled."""

    @abstractmethod
    async def run_all(self, works: Iterable[Callable[[], Awaitable[None]]]) -> None:
        """Run ``works`` concurrently, ``AT_ONCE`` at most; return when all are done."""

    @abstractmethod
    def beside(self, work: Callable[[], Awaitable[None]]) -> AbstractAsyncContextManager[None]:
        """Run ``work``, which raises no error, during the block.

        The end of the block cancels it; in threads it waits for its end.
        """

    @abstractmethod
    async def in_thread(self, work: Callable[[], R]) -> R:
        """Run ``work``, which blocks, without blocking an event loop; it always completes."""

    @abstractmethod
    async def run_on_trio(self, work: Callable[[], Awaitable[R]]) -> R:
        """Run ``work``, which needs trio, and return its result."""


class Trio(Backend):
    """The backend for trio, which is imported at the first wait."""

    framework, face = "trio", "shimctl"

    async def dial(self, address: str, timeout: float) -> Any:
        from shim.linux import sockets
        from shim.linux.peers import check_server

        stream = await sockets.connect(address, timeout)
        try:
            check_server(stream.socket, address)
        except BaseException:
            stream.socket.close()
            raise
        return stream

    def open_channel(self, dialled: Any) -> AbstractAsyncContextManager[Channel]:
        from shim.ttrpc.client import open_channel

        return open_channel(dialled)

    async def wait_readable(self, fd: int, seconds: float | None = None) -> bool:
        import trio

        with trio.move_on_after(float("inf") if seconds is None else seconds):
            with suppress(trio.ClosedResourceError):  # the caller finds it closed
                await trio.lowlevel.wait_readable(fd)
            return True
        return False

    def closing(self, fd: int) -> None:
        import trio

        trio.lowlevel.notify_closing(fd)

    async def run_shielded(self, work: Callable[[], Awaitable[None]], seconds: float) -> None:
        import trio

        with trio.move_on_after(seconds, shield=True):
            await work()

    async def run_all(self, works: Iterable[Callable[[], Awaitable[None]]]) -> None:
        import trio

        limiter = trio.CapacityLimiter(AT_ONCE)

        async def one(work: Callable[[], Awaitable[None]]) -> None:
            async with limiter:
                await work()

        async with trio.open_nursery() as nursery:
            for work in works:
                nursery.start_soon(one, work)

    @asynccontextmanager
    async def beside(self, work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        from shim.scope import background

        async with background(work):
            yield

    async def in_thread(self, work: Callable[[], R]) -> R:
        import trio

        return await trio.to_thread.run_sync(work)

    async def run_on_trio(self, work: Callable[[], Awaitable[R]]) -> R:
        return await work()


TRIO = Trio()


def running_framework() -> str:
    """Return the framework of the calling task: ``trio``, ``asyncio`` or an empty string."""
    lowlevel = sys.modules.get("trio.lowlevel")
    if lowlevel is not None and lowlevel.in_trio_task():
        return "trio"
    events = sys.modules.get("asyncio.events")
    if events is not None and events._get_running_loop() is not None:
        return "asyncio"
    return ""


class Portable(Protocol[P, R_co]):
    """A function of the library, for trio; ``on`` returns it for another backend."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]: ...

    def on(self, backend: Backend) -> Callable[P, Coroutine[Any, Any, R_co]]: ...


def portable(
    work: Callable[Concatenate[Backend, P], Coroutine[Any, Any, R]],
) -> Portable[P, R]:
    """Turn a coroutine function that takes a backend into a function for trio."""

    @functools.cache
    def on(backend: Backend) -> Any:
        @functools.wraps(work)
        async def call(*args: P.args, **kwargs: P.kwargs) -> R:
            backend.check()
            return await work(backend, *args, **kwargs)

        return _without_backend(call, backend)

    made: Portable[P, R] = _with_on(on)
    return made


class PortableBlock(Protocol[P, R_co]):
    """The same as :class:`Portable` for a block of ``async with``."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> AbstractAsyncContextManager[R_co]: ...

    def on(self, backend: Backend) -> Callable[P, AbstractAsyncContextManager[R_co]]: ...


def portable_block(
    work: Callable[Concatenate[Backend, P], AsyncIterator[R]],
) -> PortableBlock[P, R]:
    """Turn an asynchronous generator that takes a backend into a block for trio."""
    manager = asynccontextmanager(work)

    @functools.cache
    def on(backend: Backend) -> Any:
        @functools.wraps(work)
        def call(*args: P.args, **kwargs: P.kwargs) -> Block[R]:
            return Block(backend, manager(backend, *args, **kwargs))

        return _without_backend(call, backend)

    made: PortableBlock[P, R] = _with_on(on)
    return made


class Block(AbstractAsyncContextManager[R], Generic[R]):
    """A block for ``async with``; with plain ``with`` it raises an error that names the remedy."""

    def __init__(self, backend: Backend, manager: AbstractAsyncContextManager[R]) -> None:
        self._backend, self._manager = backend, manager

    async def __aenter__(self) -> R:
        self._backend.check()
        return await self._manager.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        return await self._manager.__aexit__(kind, error, trace)

    def __enter__(self) -> R:
        raise WrongFaceError(self._backend.face, running_framework(), plain=True)

    def __exit__(self, *error: object) -> None:
        raise NotImplementedError  # __enter__ has raised


def _with_on(on: Callable[[Backend], Any]) -> Any:
    function = on(TRIO)
    function.on = on
    return function


def _without_backend(function: Any, backend: Backend) -> Any:
    signature = inspect.signature(function)
    _, *others = signature.parameters.values()
    function.__signature__ = signature.replace(parameters=others)
    function.__module__ = backend.face
    return function
