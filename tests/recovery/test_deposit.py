"""A daemon leaves copies of its fds with a keeper, and never waits for it."""

from __future__ import annotations

import os
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from shim.linux.fifos import Fd
from shim.recovery import bell, outbox
from shim.recovery.deposit import Deposit
from shim.recovery.messages import END, EXIT, MAX_MESSAGE, decode, encode
from tests.latesocket import late_pair
from tests.recovery.keeper import Keeper, end_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def opened() -> AsyncIterator[tuple[Deposit, Keeper]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    deposit, keeper = Deposit(ours), Keeper(theirs)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(deposit.run)
            await trio.testing.wait_all_tasks_blocked()
            yield deposit, keeper
            nursery.cancel_scope.cancel()
    deposit.close()
    keeper.close()


async def test_a_copy_keeps_a_pipe_open_until_it_is_dropped() -> None:
    async with opened() as (deposit, keeper):
        reader, writer = os.pipe()
        deposit.put({"io/c//stdout": writer})
        os.close(writer)
        keeper.take()
        assert not end_of(reader)
        deposit.drop("io/c//stdout")
        await trio.testing.wait_all_tasks_blocked()
        keeper.take()
        assert end_of(reader)
        os.close(reader)


async def test_an_fd_that_is_held_is_dropped_when_it_is_closed() -> None:
    async with opened() as (deposit, keeper):
        reader, writer = (Fd(number) for number in os.pipe())
        deposit.hold({"w": writer})
        keeper.take()
        assert list(keeper.fds) == ["w"]
        writer.close()
        await trio.testing.wait_all_tasks_blocked()
        keeper.take()
        assert end_of(reader.number)
        reader.close()


async def test_a_name_that_is_put_again_after_a_drop_stays() -> None:
    async with opened() as (deposit, keeper):
        first, second = os.pipe()
        deposit.put({"a": first})
        deposit.drop("a")
        deposit.put({"a": second})
        await trio.testing.wait_all_tasks_blocked()
        keeper.take()
        assert os.path.sameopenfile(keeper.fds["a"], second)
        os.close(first)
        os.close(second)


async def test_a_keeper_that_is_stopped_stops_nothing_and_gets_all_later() -> None:
    async with opened() as (deposit, keeper):
        wanted = {}
        for number in range(200):
            reader, writer = os.pipe()
            os.close(reader)
            deposit.put({f"fd{number}": writer})
            if number % 3 == 0:
                deposit.drop(f"fd{number}")
            else:
                wanted[f"fd{number}"] = os.fstat(writer).st_ino
            os.close(writer)
        assert len(keeper.fds) == 0
        while len(keeper.fds) < len(wanted) or "fd0" in keeper.fds:
            keeper.take()
            await trio.testing.wait_all_tasks_blocked()
        assert {name: os.fstat(fd).st_ino for name, fd in keeper.fds.items()} == wanted


async def test_only_what_the_keeper_has_to_do_at_once_wakes_it() -> None:
    async with opened() as (deposit, keeper):
        keeper.take()
        assert keeper.bell >= 0
        with open(os.devnull) as null:
            deposit.put({"a": null.fileno()})
            await trio.testing.wait_all_tasks_blocked()
            assert not keeper.is_rung()
            deposit.drop("a")
            await trio.testing.wait_all_tasks_blocked()
            assert keeper.is_rung()
            keeper.take()
            assert not keeper.fds
            deposit.put({"b": null.fileno()})
            deposit.claimed()
            assert keeper.is_rung()
            keeper.take()
            assert deposit.give(null.fileno())
            assert keeper.is_rung()


async def test_a_keeper_is_woken_before_its_channel_is_full() -> None:
    async with opened() as (deposit, keeper):
        keeper.take()
        with open(os.devnull) as null:
            for number in range(bell._UNREAD - 1):
                deposit.put({f"fd{number}": null.fileno()})
            assert not keeper.is_rung()
            deposit.put({"last": null.fileno()})
            assert keeper.is_rung()
            assert not deposit._outbox._queue


async def test_a_drop_follows_the_replies_of_its_turn() -> None:
    """A client waits for these, and for the keeper only a reader of a stream that has ended."""
    async with opened() as (deposit, keeper):
        keeper.take()
        order = []

        async def reply() -> None:
            await trio.lowlevel.checkpoint()
            order.append(keeper.is_rung())

        deposit.drop("a")
        async with trio.open_nursery() as nursery:
            for _ in range(20):  # the order of tasks in a turn is random
                nursery.start_soon(reply)
        await trio.testing.wait_all_tasks_blocked()
        order.append(keeper.is_rung())
        assert order == [False] * 20 + [True]


async def test_too_many_queued_messages_end_the_deposit(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(outbox, "_QUEUE", 10)
    async with opened() as (deposit, _keeper):
        before = len(os.listdir("/proc/self/fd"))
        with open(os.devnull) as null:
            for number in range(2000):
                deposit.put({f"fd{number}": null.fileno()})
        assert not deposit.is_active
        assert len(os.listdir("/proc/self/fd")) <= before
    assert "a death of this shim ends its containers" in capfd.readouterr().err


async def test_the_end_of_the_keeper_ends_only_the_deposit() -> None:
    async with opened() as (deposit, keeper):
        keeper.close()
        await trio.testing.wait_all_tasks_blocked()
        assert not deposit.is_active
        deposit.put({"a": 0})
        deposit.drop("a")
        assert await deposit.exit_of("a") is None


async def test_the_last_answer_of_the_keeper_counts_after_an_empty_one() -> None:
    ours, theirs = late_pair()
    deposit = Deposit(ours)
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            with theirs:
                await trio.testing.wait_all_tasks_blocked()
                theirs.send(encode(EXIT, "pidfd/c1/", "1792", "12345"))
            await deposit.run()

        nursery.start_soon(serve)
        with trio.fail_after(20):
            assert await deposit.exit_of("pidfd/c1/") == (7 << 8, 12345)
        nursery.cancel_scope.cancel()
    deposit.close()


async def test_the_end_of_the_keeper_may_be_noticed_twice_in_one_turn() -> None:
    for _ in range(20):  # the order of tasks in a turn is random
        async with opened() as (deposit, keeper):
            reader, writer = os.pipe()

            async def put(deposit: Deposit = deposit, reader: int = reader) -> None:
                await trio.lowlevel.wait_readable(reader)
                deposit.put({"a": reader})

            async with trio.open_nursery() as nursery:
                nursery.start_soon(put)
                await trio.testing.wait_all_tasks_blocked()
                keeper.close()
                os.close(writer)
            await trio.testing.wait_all_tasks_blocked()
            assert not deposit.is_active
            os.close(reader)


@pytest.mark.parametrize(("server", "is_active"), [("/absent", True), ("", False)])
def test_a_keeper_may_have_ended_before_the_event_loop_runs(server: str, is_active: bool) -> None:
    """A daemon that is started, or a replacement, must not fail because of it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    before = len(os.listdir("/proc/self/fd"))
    deposit = Deposit(ours, server)
    assert not deposit.is_kept
    assert deposit.is_active is is_active
    assert len(os.listdir("/proc/self/fd")) == before - 1
    deposit.close()


async def test_the_keeper_reports_the_exit_of_a_process() -> None:
    async with opened() as (deposit, keeper):
        found: list[tuple[int, int] | None] = []
        keeper.take()

        async def ask(name: str) -> None:
            found.append(await deposit.exit_of(name))

        for name, answer in (("pidfd/c/", ["1792", "17"]), ("pidfd/d/", [])):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, name)
                await trio.lowlevel.wait_readable(keeper.channel)
                assert decode(keeper.channel.recv(MAX_MESSAGE)) == (EXIT, [name])
                keeper.channel.send(encode(EXIT, name, *answer))
        assert found == [(1792, 17), None]


async def test_without_a_keeper_nothing_is_done() -> None:
    deposit = Deposit()
    reader, writer = (Fd(number) for number in os.pipe())
    deposit.hold({"w": writer})
    deposit.put({"r": reader.number})
    writer.close()
    reader.close()
    await deposit.run()
    assert not deposit.is_active
    assert writer.closing is None


async def test_a_deposit_that_is_closed_says_that_it_ends_on_purpose() -> None:
    async with opened() as (deposit, keeper):
        keeper.take()  # the bell
        deposit.close()
        assert keeper.channel.recv(MAX_MESSAGE) == encode(END)
