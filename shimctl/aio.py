"""The library on asyncio: the names of :mod:`shimctl`, with the same values.

    import asyncio
    from shimctl import aio

    async def main():
        async with aio.connect("unix:///run/containerd/s/...") as shim:
            print((await shim.task("redis").state()).status)

    asyncio.run(main())

:class:`~shimctl.client.Shim` and :class:`~shimctl.client.Task` are the same classes as
on trio.  Every method is a coroutine; cancelling it ends the call.  Any number of tasks
may use one connection.  Only :func:`serve_events` differs: it is an ``async with``
block, because asyncio has no ``nursery.start``.  trio is not imported.

Source: as in :mod:`shimctl.client`, :mod:`shimctl.launching` and :mod:`shimctl.discover`.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from shim.api.mount_pb2 import Mount
from shim.errors import (
    ExistsError,
    InvalidError,
    NotFoundError,
    ShimError,
    TimedOutError,
    UnavailableError,
    UnsupportedError,
    WrongStateError,
)
from shim.linux.removal import remove_tree
from shim.ttrpc import aio as ttrpc
from shimctl import client, discover, ending, launching
from shimctl.backend import AT_ONCE
from shimctl.client import CONNECT_TIMEOUT, Shim, Task
from shimctl.discover import Found, Health
from shimctl.events import Event, handlers_for, listening
from shimctl.exits import read_address, read_exit
from shimctl.launching import DEFAULT_RUNTIME, Launched
from shimctl.options import runc_options
from shimctl.remains import RemainsError
from shimctl.values import Connected, Exited, Pid, Stats, Status, Stdio, TaskState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
    from pathlib import Path

__all__ = [
    "Connected",
    "Event",
    "ExistsError",
    "Exited",
    "Found",
    "Health",
    "InvalidError",
    "Launched",
    "Mount",
    "NotFoundError",
    "Pid",
    "RemainsError",
    "Shim",
    "ShimError",
    "Stats",
    "Status",
    "Stdio",
    "Task",
    "TaskState",
    "TimedOutError",
    "UnavailableError",
    "UnsupportedError",
    "WrongStateError",
    "connect",
    "dispose",
    "launch",
    "list_shims",
    "read_address",
    "read_exit",
    "remove_tree",
    "run_delete",
    "runc_options",
    "serve_events",
]


@asynccontextmanager
async def connect(
    address: str, *, namespace: str = "", timeout: float = CONNECT_TIMEOUT
) -> AsyncIterator[Shim]:
    """Connect to the shim at ``address`` for the block; see :func:`shimctl.connect`."""
    with client.connecting_to(address) as whole:
        sock = await ttrpc.connect(whole, timeout)
    async with ttrpc.open_channel(sock) as channel:
        yield Shim(channel, whole, namespace)


async def launch(
    bundle: str | Path,
    container: str,
    *,
    namespace: str = "default",
    runtime: str = DEFAULT_RUNTIME,
    debug: bool = False,
    events: str | Path | None = None,
) -> Launched:
    """Start a shim; see :func:`shimctl.launch`."""
    return await launching.launch(
        bundle,
        container,
        namespace=namespace,
        runtime=runtime,
        debug=debug,
        events=events,
        backend=_BACKEND,
    )


async def run_delete(
    bundle: str | Path,
    container: str,
    *,
    namespace: str = "default",
    runtime: str = DEFAULT_RUNTIME,
) -> Exited | None:
    """Run the shim's ``delete`` command; see :func:`shimctl.run_delete`."""
    return await launching.run_delete(
        bundle, container, namespace=namespace, runtime=runtime, backend=_BACKEND
    )


async def dispose(
    bundle: str | Path,
    container: str,
    *,
    address: str = "",
    namespace: str = "default",
    runtime: str = DEFAULT_RUNTIME,
    alone: bool = True,
) -> Exited | None:
    """End a container and its shim; see :func:`shimctl.dispose`."""
    return await ending.dispose(
        bundle,
        container,
        address=address,
        namespace=namespace,
        runtime=runtime,
        alone=alone,
        backend=_BACKEND,
    )


async def list_shims(
    *,
    states: Sequence[str | Path] = (),
    socket_dir: str | Path = discover.SOCKETS,
    timeout: float = discover.PROBE,
) -> list[Found]:
    """Find every shim; see :func:`shimctl.list_shims`."""
    return await discover.list_shims(
        states=states, socket_dir=socket_dir, backend=_BACKEND, timeout=timeout
    )


@asynccontextmanager
async def serve_events(
    path: str | Path, handler: Callable[[Event], Awaitable[object]]
) -> AsyncIterator[None]:
    """Listen on ``path`` and call ``handler`` with each event, for the block.

    It listens when the block begins.  The end of the block cancels a handler that still
    runs.  Everything else is as in :func:`shimctl.serve_events`.
    """
    with listening(path) as listener:
        async with ttrpc.open_server(listener, handlers_for(handler)):
            yield


class _Asyncio:
    """The backend for asyncio; see :mod:`shimctl.backend`."""

    connect = staticmethod(connect)

    async def wait_readable(self, fd: int, seconds: float) -> bool:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(fd, ready.set)
        try:
            async with asyncio.timeout(seconds):
                await ready.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(fd)
        return True

    async def run_shielded(self, work: Callable[[], Awaitable[None]], seconds: float) -> None:
        async def bounded() -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await work()

        task = asyncio.create_task(bounded())
        while not task.done():
            # A cancellation here takes effect when the work has ended.
            with suppress(asyncio.CancelledError):
                await asyncio.shield(task)
        task.result()

    async def run_all(self, works: Iterable[Callable[[], Awaitable[None]]]) -> None:
        limiter = asyncio.Semaphore(AT_ONCE)

        async def one(work: Callable[[], Awaitable[None]]) -> None:
            async with limiter:
                await work()

        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(one(work))


_BACKEND = _Asyncio()
