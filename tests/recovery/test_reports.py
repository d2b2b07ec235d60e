"""Exits that earlier fork servers report; a test is such a server."""

from __future__ import annotations

import os
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
import trio.testing

from shim.recovery.inherited import REPORTS, Inherited
from shim.recovery.messages import DROP, EXIT, MAX_MESSAGE, decode, encode
from shim.recovery.reports import Reports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio.testing import MockClock

NAME, OTHER = "pidfd/c1/e1", "pidfd/c1/e2"


class Bench:
    """The reports of one server, whose end of the channel is ``server``."""

    def __init__(self) -> None:
        self.server, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.server.setblocking(False)
        fds = {name: os.pidfd_open(os.getpid()) for name in (NAME, OTHER)}
        self.inherited = Inherited(
            {
                **fds,
                "io/c1//stdout": os.open(os.devnull, os.O_RDWR),
                f"{REPORTS}/0": theirs.detach(),
            }
        )
        self.dropped: list[str] = []
        self.reports = Reports(self.inherited, self.dropped.append)

    async def question(self) -> tuple[str, str]:
        """Return the name and the token of the next question."""
        await trio.lowlevel.wait_readable(self.server)
        verb, (name, token) = decode(self.server.recv(MAX_MESSAGE))
        assert verb == EXIT
        return name, token

    def answer(self, *words: str) -> None:
        self.server.send(encode(EXIT, *words))


@asynccontextmanager
async def open_bench() -> AsyncIterator[Bench]:
    bench = Bench()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.reports.run)
        yield bench
        nursery.cancel_scope.cancel()
    bench.server.close()
    bench.inherited.close()


async def test_an_exit_is_the_one_that_the_server_reports() -> None:
    async with open_bench() as bench, trio.open_nursery() as nursery:

        async def serve() -> None:
            bench.answer(*await bench.question(), "1792", "12345")
            bench.answer(*await bench.question())

        nursery.start_soon(serve)
        assert await bench.reports.exit_of(NAME) == (7 << 8, 12345)
        assert await bench.reports.exit_of(OTHER) is None


async def test_an_answer_to_an_earlier_daemon_is_ignored() -> None:
    """That one has asked before the process was known, was killed, and shared the channel."""
    async with open_bench() as killed, trio.open_nursery() as nursery:
        nursery.start_soon(killed.reports.exit_of, NAME)
        _, earlier = await killed.question()
        nursery.cancel_scope.cancel()
    async with open_bench() as bench, trio.open_nursery() as nursery:

        async def serve() -> None:
            name, token = await bench.question()
            bench.answer(name, earlier)
            bench.answer(name, earlier, "0", "1")
            bench.answer(name, token, "1792", "12345")

        nursery.start_soon(serve)
        assert await bench.reports.exit_of(NAME) == (7 << 8, 12345)


async def test_the_last_answer_of_a_server_that_ends_with_unread_messages_counts() -> None:
    """The kernel reports the unread message first."""
    async with open_bench() as bench, trio.open_nursery() as nursery:

        async def serve() -> None:
            name, token = await bench.question()
            bench.reports.drop([OTHER])
            bench.answer(name, token, "1792", "12345")
            bench.server.close()

        nursery.start_soon(serve)
        assert await bench.reports.exit_of(NAME) == (7 << 8, 12345)
        await trio.testing.wait_all_tasks_blocked()
        assert bench.dropped == [f"{REPORTS}/0"]


async def test_a_server_that_ends_knows_no_exit_and_its_channel_is_dropped() -> None:
    async with open_bench() as bench, trio.open_nursery() as nursery:

        async def serve() -> None:
            await bench.question()
            bench.server.close()

        nursery.start_soon(serve)
        assert await bench.reports.exit_of(NAME) is None
        assert await bench.reports.exit_of(OTHER) is None
        assert bench.dropped == [f"{REPORTS}/0"]
        bench.reports.drop([NAME])


async def test_a_server_that_is_stopped_costs_five_seconds(autojump_clock: MockClock) -> None:
    async with open_bench() as bench:
        before = trio.current_time()
        assert await bench.reports.exit_of(NAME) is None
        assert 5 <= trio.current_time() - before < 6
    del autojump_clock


async def test_only_the_pidfds_that_were_inherited_are_dropped_and_each_once() -> None:
    async with open_bench() as bench:
        bench.reports.drop(["io/c1//stdout", NAME, "pidfd/c1/later"])
        bench.reports.drop([NAME])
        assert bench.server.recv(MAX_MESSAGE) == encode(DROP, NAME)
        # A process that gets the name later is not the server's.
        assert await bench.reports.exit_of(NAME) is None
        await trio.testing.wait_all_tasks_blocked()
        bench.reports.drop([OTHER])
        assert bench.server.recv(MAX_MESSAGE) == encode(DROP, OTHER)


async def test_a_server_that_takes_no_messages_is_left_and_not_waited_for() -> None:
    async with open_bench() as bench:
        sock = bench.reports._channels[0]._sock
        try:
            while True:
                sock.send(b"x")
        except BlockingIOError:
            pass
        bench.reports.drop([NAME])
        assert bench.dropped == [f"{REPORTS}/0"]
        assert await bench.reports.exit_of(OTHER) is None
