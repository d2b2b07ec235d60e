"""The containers that a daemon expects are known to its replacement."""

from __future__ import annotations

import os
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from shim.container.containers import JOIN_LIMIT, Containers
from shim.container.expected import Expected, SavedExpected
from shim.container.host import Host
from shim.container.reservations import LIMIT, Reservation, Reservations
from shim.errors import FullError, InvalidError
from shim.events.source import NullPublisher
from shim.reaper import open_reaper
from shim.recovery.deposit import Deposit
from shim.recovery.slot import StateSlot
from tests.recovery.keeper import Keeper

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio.testing import MockClock


@asynccontextmanager
async def daemon(
    keeper: Keeper, deposit: Deposit, first: Reservation | None = None
) -> AsyncIterator[Containers]:
    """A daemon with no container yet, with what an earlier one left in ``keeper``."""
    fd = keeper.fds.get("expected")
    expected = SavedExpected(deposit, StateSlot(os.dup(fd)) if fd is not None else None)
    reservations = Reservations("/b", "unix:///s", first, expected.earlier.reservations)
    async with open_reaper() as reaper, trio.open_nursery() as nursery:
        host = Host(
            *("test", reaper, NullPublisher(), nursery, 10.0, reservations),
            deposit=deposit,
            expected=expected,
        )
        yield Containers(host, trio.Event())
        keeper.take()
        nursery.cancel_scope.cancel()


def channel() -> tuple[Deposit, Keeper]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Deposit(ours), Keeper(theirs)


async def test_reservations_joins_and_cancelled_creates_are_restored(
    autojump_clock: MockClock,
) -> None:
    deposit, keeper = channel()
    first = Reservation("c1", "/bundles/c1", most=2)
    async with daemon(keeper, deposit, first) as containers:
        containers.reserve("c1")
        containers.join(Reservation("c2", "/bundles/c2", most=2).encode())
        containers.join("")
        containers.note_cancelled("c9")
        joined = trio.current_time()
    async with daemon(keeper, deposit, first) as containers:
        containers.reserve("c1")
        assert containers.creations.was_cancelled("c9")
        with pytest.raises(FullError):
            containers.join(Reservation("c3", "/bundles/c3", most=2).encode())
        containers.release("c1")
        containers.shut_down()
        assert not containers.shutdown.is_set()
        await containers.shutdown.wait()
        assert trio.current_time() - joined == pytest.approx(max(LIMIT, JOIN_LIMIT), abs=1)
    deposit.close()
    keeper.close()


async def test_a_daemon_that_is_not_shared_saves_nothing_for_its_containers() -> None:
    deposit, keeper = channel()
    async with daemon(keeper, deposit) as containers:
        for id_ in ("c1", "c2"):
            containers.reserve(id_)
        for id_ in ("c1", "c2"):
            containers.release(id_)
    assert not keeper.fds
    deposit.close()
    keeper.close()


async def test_a_daemon_that_was_about_to_end_has_a_replacement_that_ends() -> None:
    deposit, keeper = channel()
    async with daemon(keeper, deposit) as containers:
        containers.reserve("c1")
        containers.release("c1")
        containers.shut_down()
    async with daemon(keeper, deposit) as containers:
        assert not containers.shutdown.is_set()  # its calls have to be restored first
        containers.resume_shutdown()
        assert containers.shutdown.is_set()
    deposit.close()
    keeper.close()


async def test_a_daemon_that_waited_for_a_create_before_its_end_has_a_replacement_that_waits(
    autojump_clock: MockClock,
) -> None:
    deposit, keeper = channel()
    async with daemon(keeper, deposit) as containers:
        containers.join("")
        containers.shut_down()
        joined = trio.current_time()
    async with daemon(keeper, deposit) as containers:
        containers.resume_shutdown()
        await containers.shutdown.wait()
        assert trio.current_time() - joined == pytest.approx(JOIN_LIMIT, abs=1)
    deposit.close()
    keeper.close()
    del autojump_clock


async def test_a_daemon_that_was_about_to_end_goes_on_with_another_container() -> None:
    deposit, keeper = channel()
    async with daemon(keeper, deposit) as containers:
        containers.join("")
        containers.shut_down()
        containers.reserve("c2")
    async with daemon(keeper, deposit) as containers:
        containers.resume_shutdown()
        assert not containers.shutdown.is_set()
    deposit.close()
    keeper.close()


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"version": 99}', b"{" * 100_000])
def test_a_malformed_state_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidError):
        Expected.parse(text)
