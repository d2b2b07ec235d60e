"""The daemon: serves its containers until a Shutdown without containers, or a signal.

To shut down, by request or by signal, ends the service and kills no container.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from shim import log
from shim.container.bundle import Bundle
from shim.container.expected import SavedExpected
from shim.container.host import Host
from shim.container.reservations import Reservations
from shim.counters import COUNTERS
from shim.errors import ShimError
from shim.events.publisher import open_publisher
from shim.linux import sockets
from shim.linux.filelimit import raise_limit
from shim.ownservice import OwnService
from shim.reaper import open_reaper
from shim.recovery.connections import Connections
from shim.recovery.deposit import Deposit
from shim.recovery.inherited import EXPECTED, LISTENER
from shim.recovery.reports import Reports
from shim.revival import start_server
from shim.runc.driver import LIMIT
from shim.service import ALIASES, CANCELLABLE, IMMEDIATE, UNDOABLE, TaskService
from shim.ttrpc.server import handlers_of, serve

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from shim.container.containers import Containers
    from shim.container.reservations import Reservation
    from shim.events.publisher import EventPublisher
    from shim.events.source import NullPublisher
    from shim.recovery.inherited import Inherited

    Ready = Callable[[trio.TaskStatus[None]], Awaitable[bool]]

# Seconds without a container after which the daemon exits.
UNUSED_LIMIT = 30.0
# The same for a replacement: the killed daemon has had a part of that time.
UNUSED_REPLACEMENT = 5.0
# Seconds for the running calls, and to deliver an event, when the daemon exits.
DRAIN = 3.0
FLUSH = 1.0


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one daemon.

    ``bundle`` is that of the container for which the daemon was started; it may
    later serve others.  ``limit`` is in seconds, for one runtime command.
    ``ttrpc_address`` is the manager's, ``address`` the daemon's own.
    ``ended_is_killed`` is as in :class:`~shim.container.host.Host`.  ``first`` is the
    reservation of the first container of a shared daemon, None for another daemon.
    """

    namespace: str
    id: str
    bundle: str
    ttrpc_address: str
    address: str
    limit: float = LIMIT
    ended_is_killed: bool = False
    first: Reservation | None = None


def run(
    settings: Settings,
    listener: socket.socket,
    ready: Ready,
    deposit: Deposit | None = None,
    inherited: Inherited | None = None,
) -> None:
    """Serve on ``listener``, own it, and remove its socket at the end.

    ``ready`` is called once requests are served, and returns whether the caller
    of ``start`` has received the address; otherwise the daemon shuts down.

    ``deposit`` is an inactive one for a daemon that is not replaced.  ``inherited`` has the fds
    of a killed daemon, None for a new daemon.
    """
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    raise_limit()
    COUNTERS.reset()
    is_kept = deposit is not None and deposit.is_active
    bound = sockets.identity_of(settings.address) if is_kept else None
    try:
        trio.run(main, settings, listener, ready, deposit, inherited, strict_exception_groups=True)
        if bound is not None:
            # The keeper's copy of the listener may be open yet.
            sockets.remove(settings.address, bound)
    finally:
        listener.close()
        # Another daemon may be bound to the address by now, or may replace this one.
        with suppress(ShimError, OSError):
            sockets.remove_dead(settings.address)


async def main(
    settings: Settings,
    listener: socket.socket,
    ready: Ready,
    deposit: Deposit | None = None,
    inherited: Inherited | None = None,
) -> None:
    """Serve until shutdown; see :func:`run`."""
    shutdown = trio.Event()
    deposit = deposit or Deposit()
    async with (
        open_reaper() as reaper,
        open_publisher(
            settings.ttrpc_address,
            settings.namespace,
            Bundle(Path(settings.bundle)).journal,
            deposit=deposit,
            inherited=inherited,
        ) as publisher,
        trio.open_nursery() as nursery,
        AsyncExitStack() as stack,
    ):
        log.attach(settings.id, log.fileno())
        expected = SavedExpected(
            deposit, inherited.take_slot(EXPECTED) if inherited is not None else None
        )
        stack.callback(expected.close)
        reservations = Reservations(
            settings.bundle, settings.address, settings.first, expected.earlier.reservations
        )
        stack.callback(reservations.close)
        host = Host(
            settings.namespace,
            reaper,
            publisher,
            nursery,
            settings.limit,
            reservations,
            settings.bundle,
            settings.address,
            settings.ended_is_killed,
            deposit,
            expected,
            inherited.parent if inherited is not None else 0,
        )
        if deposit.is_active:
            start = partial(start_server, reaper, deposit.starter, deposit.server)
            nursery.start_soon(deposit.run, start if deposit.starter else None)
            nursery.start_soon(_drop_listener, deposit, shutdown)
        service = TaskService(host, shutdown)
        connections = Connections(deposit)
        resumed = []
        if inherited is not None:
            log.info("this shim replaces one that was killed", id=settings.id, pid=os.getpid())
            reports = Reports(inherited, deposit.drop)
            deposit.use(reports)
            nursery.start_soon(reports.run)
            await service.restore(inherited)
            publisher.begin()
            resumed = connections.resume(inherited)
            deposit.drop(*inherited.close())
            if inherited.turn is not None:
                # A call changes states, or begins the next move: from the first one on, no
                # process with the fds of an earlier moment may go on with them.
                inherited.turn.serve()
                deposit.serving()
            service.containers.resume_shutdown()
        own = OwnService(
            service.containers, deposit, inherited.turn if inherited is not None else None
        )
        handlers = handlers_of(service, own, aliases=ALIASES)
        sock = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
        await nursery.start(_shutdown_on_signal, shutdown)
        unused = UNUSED_LIMIT if inherited is None else UNUSED_REPLACEMENT
        nursery.start_soon(_shutdown_when_unused, service.containers, unused)
        serving = partial(
            serve,
            shutdown=shutdown,
            drain=DRAIN,
            cancellable=CANCELLABLE,
            undoable=UNDOABLE,
            immediate=IMMEDIATE,
            store=connections if deposit.is_active else None,
            resumed=resumed,
        )
        async with trio.open_nursery() as conversations:
            await conversations.start(serving, sock, handlers)
            await nursery.start(_shutdown_unless_reported, ready, service.containers, settings.id)
            log.debug("serving", id=settings.id, pid=os.getpid())
        await _flush(publisher)
        deposit.close()  # not after an error: the daemon is replaced then
        nursery.cancel_scope.cancel()


async def _drop_listener(deposit: Deposit, shutdown: trio.Event) -> None:
    # The service closes the listener at the shutdown.  With a copy of it in the keeper,
    # clients would still connect, and wait for a reply.
    await shutdown.wait()
    deposit.drop(LISTENER)


async def _flush(publisher: EventPublisher | NullPublisher) -> None:
    """Deliver the queued events, as long as the manager acknowledges one each FLUSH seconds.

    The bundles of deleted containers, and with them their journals, are removed by now.
    """
    waiting = publisher.waiting + 1
    while publisher.waiting < waiting:
        waiting = publisher.waiting
        with trio.move_on_after(FLUSH):
            await publisher.flush()
            return
    log.warning("cannot deliver all events before shutdown: they stay in the journal")


async def _shutdown_on_signal(
    shutdown: trio.Event, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            log.info("shutting down on a signal", signal=signal.Signals(number).name)
            shutdown.set()


async def _shutdown_unless_reported(
    ready: Ready, containers: Containers, id_: str, task_status: trio.TaskStatus[None]
) -> None:
    # Another ``start`` of the pod may have been given the address, and used it.
    if not await ready(task_status):
        log.info("the caller of start ended before it received the address")
        containers.forget_start(id_)


async def _shutdown_when_unused(containers: Containers, seconds: float) -> None:
    while True:
        await containers.wait_unused(seconds)
        log.warning("this shim has had no container", seconds=seconds)
        containers.shut_down()


def warm_up() -> None:
    """Run the same code as :func:`run` until it is ready, then end; leave nothing on the host.

    A child of the fork server calls this before it becomes a daemon.  It writes to
    the pages that a daemon writes to at once, and to no others, because the child
    no longer shares a page once it has written there.
    """
    trio.run(_warm_up, strict_exception_groups=True)


async def _warm_up() -> None:
    shutdown = trio.Event()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("")  # a free abstract name; creates no file
    listener.listen()
    sock = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
    async with (
        sock,
        open_reaper() as reaper,
        open_publisher("/nonexistent", "warmup") as publisher,
        trio.open_nursery() as nursery,
    ):
        host = Host("warmup", reaper, publisher, nursery, LIMIT)
        handlers = handlers_of(TaskService(host, shutdown), aliases=ALIASES)
        await nursery.start(_shutdown_on_signal, shutdown)
        serving = partial(serve, shutdown=shutdown, drain=0, cancellable=CANCELLABLE)
        await nursery.start(serving, sock, handlers)
        shutdown.set()
        nursery.cancel_scope.cancel()
