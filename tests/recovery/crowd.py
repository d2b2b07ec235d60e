"""Three daemons leave fds with a keeper where the kernel limits the fds in all channels.

Run in a user namespace.  Prints the number of fds that the keeper has of each.
"""

from __future__ import annotations

import os
import resource
import select
import socket

import trio

from shim.linux.fifos import Fd
from shim.recovery.deposit import Deposit
from shim.start.keeper import Keeper

# Fds of this process, and fds that may wait in channels before the kernel refuses more.
LIMIT = 100
EACH = 60


def keep(channels: list[socket.socket], stop: int) -> list[int]:
    """Be the keeper until ``stop`` is written to; return the numbers of fds."""
    poll = select.poll()
    keeper = Keeper(poll, lambda _kept, _reason: None, 0)
    poll.register(stop, select.POLLIN)
    for number, channel in enumerate(channels):
        keeper.attach(1000 + number, channel)
    while stop not in (fds := [fd for fd, _ in poll.poll()]):
        for fd in fds:
            keeper.receive(fd)
    keeper._channels.others_wait = True  # for the messages that wait without a bell
    keeper._channels.read_waiting()
    return [len(keeper._daemons[1000 + number].fds) for number in range(len(channels))]


async def leave(channels: list[socket.socket]) -> None:
    deposits = [Deposit(channel) for channel in channels]
    async with trio.open_nursery() as nursery:
        for deposit in deposits:
            nursery.start_soon(deposit.run)
        for deposit in deposits:
            deposit.hold({f"fd{number}": Fd(1) for number in range(EACH)})
        with trio.fail_after(20):
            while any(deposit._outbox._queue for deposit in deposits):
                await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    assert all(deposit.is_kept for deposit in deposits)


def main() -> None:
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (LIMIT, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(3)]
    stop, stopper = os.pipe()
    if not (keeper := os.fork()):
        for ours, _ in pairs:
            ours.close()
        print(*keep([theirs for _, theirs in pairs], stop), flush=True)
        os._exit(0)
    for _, theirs in pairs:
        theirs.close()
    try:
        trio.run(leave, [ours for ours, _ in pairs])
    finally:
        os.write(stopper, b"x")
        os.waitpid(keeper, 0)


if __name__ == "__main__":
    main()
