"""A server that is killed while it accepts a connection does not close it."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from shim.recovery.connections import Connections
from shim.recovery.deposit import Deposit
from tests.recovery.keeper import Keeper
from tests.recovery.stepping import killed_before

if TYPE_CHECKING:
    from pathlib import Path

# Instructions from the return of accept(2) to the call of sendmsg(2), at most.
_BETWEEN = 16


def accept_until(listener: socket.socket, step: int) -> tuple[bool, Keeper]:
    """Accept a connection in a process that is killed before the instruction ``step``.

    Return whether it was killed, and its keeper.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if not (pid := os.fork()):
        try:
            ours.close()
            store = Connections(Deposit(theirs))
            sys.settrace(killed_before(step, lambda path: "/shim/" in path))
            store.accept(listener)
        finally:
            os._exit(0)
    theirs.close()
    _, status = os.waitpid(pid, 0)
    keeper = Keeper(ours)
    keeper.take()
    return status != 0, keeper


def is_open(client: socket.socket) -> bool:
    """Return whether no process has closed the other end."""
    with suppress(BlockingIOError, ConnectionError):
        client.recv(1, socket.MSG_DONTWAIT)
        return False
    return True


def test_a_client_is_lost_in_a_few_instructions_only(tmp_path: Path) -> None:
    """Before accept(2) it waits in the backlog; after sendmsg(2) the keeper has a copy."""
    lost, step, killed = [], 0, True
    while killed:
        step += 1
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
            listener.bind(f"{tmp_path}/{step}")
            listener.listen()
            client.connect(f"{tmp_path}/{step}")
            killed, keeper = accept_until(listener, step)
            if not is_open(client):
                lost.append(step)
            keeper.close()
    assert step > 100
    assert len(lost) <= _BETWEEN, lost
