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
from shim.recovery import bell, registering
from shim.recovery import deposit as deposit_module
from shim.recovery.deposit import Deposit
from shim.recovery.inherited import DAEMON
from shim.recovery.messages import END, EXIT, MAX_MESSAGE, REGISTER, decode, encode
from shim.recovery.registering import ring
from tests.recovery.keeper import Keeper, Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


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


def end_of(reader: int) -> bool:
    """Return whether the pipe of ``reader`` has no writer any more."""
    os.set_blocking(reader, False)
    try:
        return os.read(reader, 1) == b""
    except BlockingIOError:
        return False


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
            assert not deposit._queue


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
    monkeypatch.setattr(deposit_module, "_QUEUE", 10)
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


@asynccontextmanager
async def lost(directory: Path, **fds: int) -> AsyncIterator[tuple[Deposit, str]]:
    """Yield a deposit whose keeper has ended, and the path of its fork server's socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    path = f"{directory}/f/server"
    deposit = Deposit(ours, path, fds)
    deposit.keeper = 0  # it was another process
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


async def test_a_new_keeper_gets_all_fds_also_those_closed_since(tmp_path: Path) -> None:
    slot = os.open(os.devnull, os.O_RDONLY)
    async with lost(tmp_path, **{DAEMON: slot}) as (deposit, path):
        pipes = [os.pipe() for _ in range(4)]
        held = Fd(pipes[0][1])
        deposit.hold({"held": held})
        deposit.put({"put": pipes[1][1], "closed": pipes[2][1], "dropped": pipes[3][1]})
        for _, writer in pipes[1:]:
            os.close(writer)
        deposit.drop("dropped")
        assert end_of(pipes[3][0])
        server = Server(path)
        ring(path)
        keeper = await server.answer({})
        assert keeper is not None
        await wait_kept(deposit)
        keeper.take()
        assert list(keeper.fds) == ["put", "closed", "held", DAEMON]  # the daemon's is the last
        for name, (reader, _) in zip(["held", "put", "closed"], pipes, strict=False):
            assert os.fstat(keeper.fds[name]).st_ino == os.fstat(reader).st_ino
        held.close()
        deposit.drop("put")
        await trio.testing.wait_all_tasks_blocked()
        keeper.take()
        assert list(keeper.fds) == ["closed", DAEMON]
        assert end_of(pipes[0][0])
        assert end_of(pipes[1][0])
        assert not end_of(pipes[2][0])
        keeper.close()
        server.close()
        for reader, _ in pipes:
            os.close(reader)
    os.close(slot)


async def test_an_fd_that_is_lent_or_held_is_not_copied(tmp_path: Path) -> None:
    async with lost(tmp_path) as (deposit, _):
        reader, writer = os.pipe()
        held = Fd(writer)
        before = len(os.listdir("/proc/self/fd"))
        deposit.lend({"lent": reader})
        deposit.hold({"held": held})
        assert len(os.listdir("/proc/self/fd")) == before
        deposit.put({"put": reader})
        deposit.hold({"fifo": held}, {"fifo": writer})
        assert len(os.listdir("/proc/self/fd")) == before + 2
        deposit.drop("lent", "put")
        held.close()
        assert len(os.listdir("/proc/self/fd")) == before - 1
        os.close(reader)


async def test_a_server_that_listens_already_is_found(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir(mode=0o700)
    server = Server(f"{tmp_path}/f/server")
    async with lost(tmp_path) as (deposit, _):
        keeper = await server.answer({})
        assert keeper is not None
        await wait_kept(deposit)
        keeper.close()
    server.close()


async def test_a_server_that_refuses_is_not_asked_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with lost(tmp_path) as (deposit, path):
        server = Server(path)
        ring(path)
        assert await server.answer({"error": "it is the wrong one"}) is None
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert server.requests[0].startswith(REGISTER)
        server.close()
        os.unlink(path)  # noqa: PTH108 - a plain string
        server = Server(path)  # of which the daemon is not told
        await trio.testing.wait_all_tasks_blocked(0.05)
        ring(path)
        keeper = await server.answer({})
        await wait_kept(deposit)
        assert len(server.requests) == 1
        assert keeper is not None
        keeper.close()
        server.close()
    assert 'reason="it is the wrong one"' in capfd.readouterr().err


async def test_a_daemon_without_a_keeper_does_not_wake_up(tmp_path: Path) -> None:
    class Steps(trio.abc.Instrument):
        tasks: set[trio.lowlevel.Task]

        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            self.tasks.add(task)

    steps = Steps()
    async with lost(tmp_path):
        await trio.testing.wait_all_tasks_blocked(0.05)
        steps.tasks = set()
        trio.lowlevel.add_instrument(steps)
        await trio.sleep(0.5)
        trio.lowlevel.remove_instrument(steps)
    assert steps.tasks == {trio.lowlevel.current_task()}


async def test_the_keeper_that_closed_the_channel_is_not_asked_again(tmp_path: Path) -> None:
    async with lost(tmp_path) as (deposit, path):
        deposit.keeper = os.getpid()
        server = Server(path)
        ring(path)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not deposit.is_kept
        assert server.requests == []
        server.close()


async def test_a_server_is_started_once_and_not_after_an_end_on_purpose(tmp_path: Path) -> None:
    for on_purpose in (False, True):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        deposit = Deposit(ours, f"{tmp_path}/f/server")
        started: list[int] = []

        async def start(into: list[int] = started) -> None:
            into.append(1)

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(deposit.run, start)
                if on_purpose:
                    theirs.send(encode(END))
                await trio.testing.wait_all_tasks_blocked()
                theirs.close()
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        deposit.close()
        assert started == ([] if on_purpose else [1])


async def test_a_server_that_ends_may_listen_longer_than_its_channels_are_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registering, "is_ending", lambda pid: pid == os.getpid())
    (tmp_path / "f").mkdir(mode=0o700)
    server = Server(f"{tmp_path}/f/server")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    deposit = Deposit(ours, f"{tmp_path}/f/server")
    started = trio.Event()

    async def start() -> None:
        started.set()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(deposit.run, start)
            theirs.close()
            await trio.testing.wait_all_tasks_blocked()
            server.close()
            await started.wait()
            nursery.cancel_scope.cancel()
    deposit.close()


async def test_a_server_that_ended_after_it_rang_is_followed_by_another(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    path = f"{tmp_path}/f/server"
    deposit = Deposit(ours, path)
    starts = 0

    async def start() -> None:
        nonlocal starts
        starts += 1
        await trio.sleep_forever()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(deposit.run, start)
            theirs.close()
            await trio.testing.wait_all_tasks_blocked()
            for count in (1, 2, 3):
                assert starts == count
                ring(path)
                await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
    deposit.close()


async def test_a_deposit_that_is_closed_says_that_it_ends_on_purpose() -> None:
    async with opened() as (deposit, keeper):
        keeper.take()  # the bell
        deposit.close()
        assert keeper.channel.recv(MAX_MESSAGE) == encode(END)
