"""Servers in threads, for clients that belong to no framework or to another one."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import trio

import shimctl
from shim.linux import sockets
from shim.ttrpc.server import handlers_of, serve
from shimctl import aio, blocking
from tests.ttrpc.fake import V3_AS_V2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from tests.ttrpc.fake import FakeTask

PATIENCE = 20  # s for what should take a fraction of one


class Service:
    """A task service in a separate thread; see :func:`serving`."""

    def __init__(self, task: FakeTask, address: str) -> None:
        self.task = task
        self.address = address
        self.token: trio.lowlevel.TrioToken | None = None
        self.began = threading.Event()
        self.end = trio.Event()

    def set(self, event: trio.Event) -> None:
        """Set an event of the service."""
        trio.from_thread.run_sync(event.set, trio_token=self.token)

    def wait(self, event: trio.Event) -> None:
        """Wait for an event of the service, with a bound."""

        async def wait() -> None:
            with trio.fail_after(PATIENCE):
                await event.wait()

        trio.from_thread.run(wait, trio_token=self.token)

    async def run(self) -> None:
        listener = trio.SocketListener(
            trio.socket.from_stdlib_socket(sockets.listen(self.address))
        )
        self.token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            start = partial(serve, shutdown=self.end, drain=0.1, cancellable={"Wait"})
            await nursery.start(start, listener, handlers_of(self.task, aliases=V3_AS_V2))
            self.began.set()


@contextmanager
def serving(path: Path, task: FakeTask) -> Iterator[Service]:
    """Serve ``task`` on ``path``, in a thread, for the block."""
    service = Service(task, f"unix://{path}")
    thread = threading.Thread(target=trio.run, args=(service.run,))
    thread.start()
    try:
        assert service.began.wait(PATIENCE)
        yield service
    finally:
        with suppress(trio.RunFinishedError):  # a test may have ended it already
            service.set(service.end)
        thread.join(PATIENCE)
        assert not thread.is_alive()


# The receiving end of a manager, on each face


@contextmanager
def on_trio(path: Path, handler: Callable[[shimctl.Event], object]) -> Iterator[None]:
    async def call(event: shimctl.Event) -> None:
        handler(event)

    token: trio.lowlevel.TrioToken | None = None

    async def main(began: Callable[[], None], ended: trio.Event) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(shimctl.serve_events, path, call)
            nonlocal token
            token = trio.lowlevel.current_trio_token()
            began()
            await ended.wait()
            nursery.cancel_scope.cancel()

    ended = trio.Event()
    with _running(lambda began: trio.run(main, began, ended)):
        try:
            yield
        finally:
            trio.from_thread.run_sync(ended.set, trio_token=token)


@contextmanager
def on_asyncio(path: Path, handler: Callable[[shimctl.Event], object]) -> Iterator[None]:
    async def call(event: shimctl.Event) -> None:
        handler(event)

    loop: asyncio.AbstractEventLoop | None = None

    async def main(began: Callable[[], None]) -> None:
        nonlocal loop
        loop = asyncio.get_running_loop()
        async with aio.serve_events(path, call):
            began()
            await ended.wait()

    ended = asyncio.Event()
    with _running(lambda began: asyncio.run(main(began))):
        try:
            yield
        finally:
            assert loop is not None
            loop.call_soon_threadsafe(ended.set)


@contextmanager
def _running(work: Callable[[Callable[[], None]], None]) -> Iterator[None]:
    """Run ``work`` in a thread for the block, which begins when ``work`` reports that it is
    ready.
    """
    began = threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work(began.set)
        except BaseExceptionGroup as group:
            errors.extend(group.exceptions)  # of a nursery, with the one thing that failed
        except BaseException as exc:
            errors.append(exc)
        began.set()

    # A daemon: one that hangs fails its test, and not the end of all of them.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        assert began.wait(PATIENCE)
        if not errors:
            yield
    finally:
        thread.join(PATIENCE)
    if errors:
        raise errors[0]
    assert not thread.is_alive()


LISTENERS = {"trio": on_trio, "asyncio": on_asyncio, "threads": blocking.serve_events}

if TYPE_CHECKING:
    Handler = Callable[[shimctl.Event], Awaitable[object]]
