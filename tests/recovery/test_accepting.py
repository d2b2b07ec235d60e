"""A server that is killed while it accepts a connection does not close it."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress

from shim.recovery.connections import Connections
from shim.recovery.deposit import Deposit
from tests.recovery.keeper import Keeper
from tests.recovery.stepping import killed_before

# Instructions from the return of accept(2) to the call of sendmsg(2), at most.
_BETWEEN = 16
# Each kill takes a fork, so only those near one that loses the client are before each instruction.
_STRIDE = 4


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


def is_lost(step: int) -> bool | None:
    """Return whether a kill before the instruction ``step`` closes the client's connection.

    None if there are not so many instructions.
    """
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind("")  # the kernel chooses a name
        listener.listen()
        client.connect(listener.getsockname())
        killed, keeper = accept_until(listener, step)
        lost = not is_open(client)
        keeper.close()
    return lost if killed else None


def test_a_client_is_lost_in_a_few_instructions_only() -> None:
    """Before accept(2) it waits in the backlog; after sendmsg(2) the keeper has a copy."""
    step, lost = 1, set()
    while (found := is_lost(step)) is not None:
        if found:
            around = range(step - _STRIDE + 1, step + _STRIDE)
            lost |= {step, *(near for near in around if near not in lost and is_lost(near))}
        step += _STRIDE
    assert step > 100
    assert len(lost) <= _BETWEEN, lost
