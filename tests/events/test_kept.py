"""Events of a daemon that leaves its connection and its journals with a keeper."""

from __future__ import annotations

import os
import resource
import socket
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from shim.api.envelope_pb2 import Envelope
from shim.api.events_pb2 import TaskStart
from shim.events import journal as journal_module
from shim.events.forwarding import Forwardings, Sending
from shim.events.publisher import EventPublisher, open_publisher
from shim.linux.sockets import listen
from shim.recovery.deposit import Deposit
from shim.recovery.inherited import Inherited
from shim.recovery.slot import StateSlot
from shim.ttrpc.server import handlers_of, serve
from tests.e2e.waiting import PATIENCE
from tests.events.delivering import Manager, serving
from tests.events.disks import mounted
from tests.recovery.keeper import Keeper

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

MIB = 1 << 20


@pytest.fixture
async def kept() -> AsyncIterator[tuple[Deposit, Keeper]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    deposit, keeper = Deposit(ours), Keeper(theirs)
    yield deposit, keeper
    deposit.close()
    keeper.close()


@asynccontextmanager
async def publishing(
    path: Path, deposit: Deposit, inherited: Inherited | None = None
) -> AsyncIterator[EventPublisher]:
    async with open_publisher(str(path), "ns", deposit=deposit, inherited=inherited) as publisher:
        assert isinstance(publisher, EventPublisher)
        publisher.begin()
        yield publisher


async def test_a_journal_that_is_written_anew_after_a_failure_is_kept(
    tmp_path: Path, kept: tuple[Deposit, Keeper], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keeper would have the old file, in which no acknowledgement is marked any more."""
    monkeypatch.setattr(journal_module, "RETRY", 0.0)
    deposit, keeper = kept
    with mounted(tmp_path / "disk") as disk:
        path = disk.path / "events.journal"
        async with publishing(tmp_path / "events", deposit) as publisher:
            source = publisher.open_source(str(path))
            source.publish(TaskStart(pid=1))
            disk.fill()
            for pid in range(2, 100):  # the last page of the file has room for some
                source.publish(TaskStart(pid=pid))
            disk.empty()
            manager = Manager(refuse=1)
            async with serving(tmp_path / "events", manager):
                with trio.fail_after(20):
                    await publisher.flush()
            keeper.take()
            [fd] = [fd for name, fd in keeper.fds.items() if name.startswith("journal/")]
            assert os.path.samestat(os.fstat(fd), path.stat())
        assert manager.pids == list(range(1, 100))


async def test_a_part_of_an_event_that_is_in_no_journal_is_followed_by_no_other(
    tmp_path: Path, kept: tuple[Deposit, Keeper]
) -> None:
    """Its manager would take the next event for the rest of it."""
    deposit, keeper = kept
    path, manager, stop = tmp_path / "events", Manager(), trio.Event()
    listener = listen(f"unix://{path}")
    async with Forwardings(f"unix://{path}", deposit).open() as killed:
        with trio.move_on_after(0.05) as stopped:  # the manager reads nothing
            await killed.forward(Envelope(topic="x" * MIB))
        assert stopped.cancelled_caught
        keeper.take()
        inherited = Inherited({name: os.dup(fd) for name, fd in keeper.fds.items()})
    async with trio.open_nursery() as nursery, publishing(path, deposit, inherited) as publisher:
        sock = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
        run = partial(serve, sock, handlers_of(manager), shutdown=stop, drain=1)
        await nursery.start(run)
        publisher.open_source("").publish(TaskStart(pid=2))
        with trio.fail_after(5 * PATIENCE):
            await publisher.flush()
        stop.set()
    assert manager.pids == [2]


@pytest.mark.parametrize("state", [b"[]", b"{", b'{"version": 99}', Sending(b"\xff").encode()])
async def test_an_event_is_sent_on_a_new_connection_if_the_record_of_the_old_is_not_valid(
    tmp_path: Path, kept: tuple[Deposit, Keeper], state: bytes
) -> None:
    deposit, keeper = kept
    path, manager = tmp_path / "events", Manager()
    async with serving(path, manager):
        async with Forwardings(f"unix://{path}", deposit).open():
            keeper.take()
            fds = {name: os.dup(fd) for name, fd in keeper.fds.items()}
        with StateSlot(os.dup(fds["forward"])) as slot:
            slot.write(state)
        async with publishing(path, deposit, Inherited(fds)) as publisher:
            publisher.open_source("").publish(TaskStart(pid=2))
            with trio.fail_after(5 * PATIENCE):
                await publisher.flush()
    assert manager.pids == [2]


async def test_without_an_fd_for_its_record_a_connection_is_closed(
    tmp_path: Path, kept: tuple[Deposit, Keeper]
) -> None:
    deposit, _ = kept
    path = f"unix://{tmp_path}/events"
    with listen(path):
        forwardings = Forwardings(path, deposit)
        before = len(os.listdir("/proc/self/fd"))
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, limits[1]))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                async with forwardings.open():
                    pass
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert len(os.listdir("/proc/self/fd")) == before
