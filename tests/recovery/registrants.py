"""Daemons whose keeper has ended, or ends, without containers."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
import trio.testing

from shim.recovery.deposit import Deposit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path


@asynccontextmanager
async def lost(
    directory: Path, name: str = "server", /, keeper: int = 0, **fds: int
) -> AsyncIterator[tuple[Deposit, str]]:
    """Yield a deposit whose keeper has ended, and the path of its fork server's socket.

    ``name`` is that of the socket, ``keeper`` was the pid of the keeper.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    path = f"{directory}/f/{name}"
    deposit = Deposit(ours, path, fds)
    deposit.keeper = keeper
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(deposit.run)
            await trio.testing.wait_all_tasks_blocked()
            theirs.close()
            await trio.testing.wait_all_tasks_blocked()
            assert not deposit.is_kept
            assert deposit.is_active
            yield deposit, path
            nursery.cancel_scope.cancel()
    deposit.close()


async def wait_kept(deposit: Deposit) -> None:
    while not deposit.is_kept:
        await trio.sleep(0.001)


@asynccontextmanager
async def kept(
    directory: Path, start: Callable[[], Awaitable[bool]], *, is_other: bool = False
) -> AsyncIterator[socket.socket]:
    """Run a deposit, which may call ``start``; yield the keeper's end of its channel.

    ``is_other``: the keeper is another process than the test's servers.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    deposit = Deposit(ours, f"{directory}/f/server")
    if is_other:
        deposit.keeper = 0
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(deposit.run, start)
            yield theirs
            nursery.cancel_scope.cancel()
    deposit.close()
