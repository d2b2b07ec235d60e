"""The reaper and processes that a killed daemon watched: the sources of their exit statuses."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from shim.child import Child
from shim.errors import NotFoundError
from shim.exit import UNKNOWN_STATUS, Exit
from shim.reaper import open_reaper
from shim.recovery.deposit import Deposit
from shim.recovery.messages import BELL, EXIT, MAX_MESSAGE, decode, encode
from tests.test_reaper import keeps_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

NAME = "pidfd/c1/"

# The child exits with 7 at SIGTERM, which perl may handle only after the call under way.  The
# parent reaps it after a line.
PARENT = """
$| = 1;
$SIG{TERM} = sub { exit 7 };
my $pid = fork;
if (!$pid) { select(undef, undef, undef, 0.05) while 1 }
$SIG{TERM} = 'DEFAULT';
print "$pid\\n";
<STDIN>;
waitpid($pid, 0);
print "reaped\\n";
<STDIN>;
"""


class Foreign:
    """A process with a parent that is not the test, which reaps it when it is told."""

    def __init__(self) -> None:
        self.parent = subprocess.Popen(
            ["perl", "-e", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.parent.stdout is not None
        self.pid = int(self.parent.stdout.readline())
        self.pidfd = os.pidfd_open(self.pid)

    def reap(self) -> None:
        assert self.parent.stdin is not None
        assert self.parent.stdout is not None
        self.parent.stdin.write(b"\n")
        self.parent.stdin.flush()
        assert self.parent.stdout.readline() == b"reaped\n"

    def close(self) -> None:
        self.parent.kill()
        self.parent.communicate()


async def exit_of(child: Child) -> Exit:
    """Wait for the exit of a process that ends soon."""
    with trio.fail_after(20):
        return await child.wait()


@asynccontextmanager
async def open_foreign() -> AsyncIterator[Foreign]:
    foreign = Foreign()
    try:
        yield foreign
    finally:
        foreign.close()


@asynccontextmanager
async def open_deposit(exits: dict[str, tuple[int, int]]) -> AsyncIterator[Deposit]:
    """Yield a deposit whose keeper has ``exits``."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)

    async def answer() -> None:
        while True:
            await trio.lowlevel.wait_readable(theirs)
            verb, names = decode(theirs.recv(MAX_MESSAGE))
            if verb == BELL:  # this keeper reads at once
                continue
            assert verb == EXIT
            [name] = names
            theirs.send(encode(EXIT, name, *map(str, exits.get(name, ()))))

    deposit = Deposit(ours)
    with theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(deposit.run)
            nursery.start_soon(answer)
            yield deposit
            nursery.cancel_scope.cancel()
        deposit.close()


async def test_the_exit_of_an_own_child_comes_from_the_kernel() -> None:
    process = subprocess.Popen(["sh", "-c", "exit 7"])  # noqa: ASYNC220 - takes no time
    async with open_reaper() as reaper, open_deposit({NAME: (9, 1)}) as deposit:
        pidfd = os.pidfd_open(process.pid)
        child = reaper.watch_inherited(process.pid, pidfd, NAME, deposit)
        assert (await exit_of(child)).exit_status == 7
    process.returncode = 7  # the reaper has reaped it


async def test_a_process_whose_pidfd_is_lost_can_have_an_exit() -> None:
    child = Child(1 << 22, -1)
    child.set_exit(Exit(1 << 22, UNKNOWN_STATUS, 1, "its pidfd is lost"))
    assert (await exit_of(child)).reason == "its pidfd is lost"
    with pytest.raises(NotFoundError):
        child.signal(signal.SIGKILL)


async def test_an_exit_that_the_keeper_has_seen_is_its_own_with_its_time() -> None:
    async with open_foreign() as foreign, open_reaper() as reaper:
        async with open_deposit({NAME: (7 << 8, 12345)}) as deposit:
            child = reaper.watch_inherited(foreign.pid, foreign.pidfd, NAME, deposit)
            await trio.testing.wait_all_tasks_blocked()
            assert child.exit is None
            child.signal(signal.SIGTERM)
            exit_ = await exit_of(child)
        assert (exit_.pid, exit_.exit_status, exit_.exited_at) == (foreign.pid, 7, 12345)


async def test_a_process_that_the_keeper_saw_killed_exits_with_128_plus_the_signal() -> None:
    exits = {NAME: (int(signal.SIGKILL), 12345)}
    async with open_foreign() as foreign, open_reaper() as reaper, open_deposit(exits) as deposit:
        child = reaper.watch_inherited(foreign.pid, foreign.pidfd, NAME, deposit)
        child.signal(signal.SIGKILL)
        assert (await exit_of(child)).exit_status == 128 + signal.SIGKILL


@pytest.mark.parametrize("keeper", [True, False])
async def test_an_exit_that_the_keeper_does_not_know_comes_from_the_kernel(keeper: bool) -> None:
    async with open_foreign() as foreign, open_reaper() as reaper, open_deposit({}) as other:
        deposit = other if keeper else Deposit()
        # A zombie whose parent lives is waited for, since its parent may be about to end.
        child = reaper.watch_inherited(foreign.pid, foreign.pidfd, NAME, deposit)
        signal.pidfd_send_signal(foreign.pidfd, signal.SIGTERM)
        foreign.reap()
        exit_ = await exit_of(child)
        # Before 6.15 it does not keep it.
        assert exit_.exit_status == (7 if keeps_status() else UNKNOWN_STATUS)


async def test_an_exit_that_nobody_knows_is_unknown_with_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As before Linux 6.15, which keeps the status of a reaped process for its pidfds."""
    monkeypatch.setattr("shim.reaper.reaped_status", lambda _: None)
    async with open_foreign() as foreign, open_reaper() as reaper, open_deposit({}) as deposit:
        child = reaper.watch_inherited(foreign.pid, foreign.pidfd, NAME, deposit)
        signal.pidfd_send_signal(foreign.pidfd, signal.SIGTERM)
        foreign.reap()
        exit_ = await exit_of(child)
        assert (exit_.exit_status, exit_.reason) == (
            UNKNOWN_STATUS,
            "another process reaped it",
        )


async def test_a_process_that_has_ended_before_it_is_watched_keeps_its_exit() -> None:
    """Its pid may be that of a child of this process by then: both exits are right."""
    async with open_foreign() as foreign, open_reaper() as reaper:
        signal.pidfd_send_signal(foreign.pidfd, signal.SIGTERM)
        foreign.reap()
        async with open_deposit({NAME: (7 << 8, 12345)}) as deposit:
            other = reaper.spawn(["sh", "-c", "exit 3"])
            child = reaper.watch_inherited(other.pid, foreign.pidfd, NAME, deposit)
            assert (await exit_of(child)).exit_status == 7
            assert (await other.wait()).exit_status == 3
