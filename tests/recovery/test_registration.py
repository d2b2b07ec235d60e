"""A daemon whose keeper has ended registers with the next fork server, and loses no fd."""

from __future__ import annotations

import math
import os
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from shim.linux.fifos import Fd
from shim.linux.peers import Peer
from shim.names import NO_KEEPER
from shim.recovery import registering, requests
from shim.recovery.deposit import Deposit
from shim.recovery.inherited import DAEMON
from shim.recovery.messages import END, REGISTER, encode
from shim.recovery.registering import ring
from tests.latesocket import late_pair
from tests.recovery.keeper import Server, end_of

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
        assert not any(server.unanswered())
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


@pytest.mark.parametrize("answer", [b"ok", b"\xff", b"[]", b"[" * 4000])
async def test_an_answer_that_is_no_object_is_a_refusal(
    tmp_path: Path, answer: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    async with lost(tmp_path) as (deposit, path):
        server = Server(path)
        ring(path)
        assert await server.answer(answer) is None
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert deposit.problem == "its answer is no JSON object"
        server.close()
    assert "its answer is no JSON object" in capfd.readouterr().err


async def test_a_server_of_another_version_with_the_same_attributes_is_found(
    tmp_path: Path,
) -> None:
    async with lost(tmp_path, "a1-new") as (deposit, path):
        (stranger, refusing, newest) = (
            Server(f"{tmp_path}/f/{name}") for name in ("b2-new", "a1-older", "a1-newest")
        )
        os.utime(f"{tmp_path}/f/a1-older", (1, 1))
        ring(f"{tmp_path}/f/a1-newest")
        assert await newest.answer({"error": "version 2 cannot continue it"}) is None
        keeper = await refusing.answer({})
        await wait_kept(deposit)
        assert deposit.problem == ""
        assert keeper is not None
        keeper.close()
        assert stranger.requests == []
        for server in (stranger, refusing, newest):
            server.close()
        del path


async def test_a_refusal_is_the_reason_why_a_daemon_has_no_keeper(tmp_path: Path) -> None:
    async with lost(tmp_path, "a1-new") as (deposit, path):
        assert deposit.problem == NO_KEEPER
        server = Server(f"{tmp_path}/f/a1-other")
        ring(path)
        await server.answer({"error": "version 2 cannot continue it"})
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert deposit.problem == "version 2 cannot continue it"
        server.close()
        os.unlink(f"{tmp_path}/f/a1-other")  # noqa: PTH108 - a plain string
        ring(path)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert deposit.problem == NO_KEEPER


@pytest.mark.parametrize("may_ring", [True, False])
async def test_a_server_of_the_own_version_is_preferred_if_one_can_be_started(
    tmp_path: Path, may_ring: bool
) -> None:
    """Another daemon starts one, or it fails."""
    (tmp_path / "f").mkdir(mode=0o700)
    paths = [f"{tmp_path}/f/{name}" for name in ("a1-own", "a1-other")]
    other = Server(paths[1])
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    deposit = Deposit(ours, paths[0])
    deposit.keeper = 0

    async def start() -> bool:
        return may_ring

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(deposit.run, start)
            theirs.close()
            if may_ring:
                await trio.testing.wait_all_tasks_blocked(0.05)
                own = Server(paths[0])
                ring(paths[0])
                keeper = await own.answer({})
                own.close()
            else:
                keeper = await other.answer({})
            await wait_kept(deposit)
            nursery.cancel_scope.cancel()
    assert keeper is not None
    keeper.close()
    assert len(other.requests) == (0 if may_ring else 1)
    other.close()
    deposit.close()


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


async def test_keepers_that_drop_a_daemon_are_not_asked_again_before_another_one_rings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids: dict[str, int] = {}
    own_ids = os.geteuid(), os.getegid()
    monkeypatch.setattr(requests, "peer_of", lambda s: Peer(pids[s.getpeername()], *own_ids))
    (tmp_path / "f").mkdir(mode=0o700)
    servers = []
    for pid, name in enumerate(("a1-own", "a1-other"), 1):
        pids[f"{tmp_path}/f/{name}"] = pid
        servers.append(Server(f"{tmp_path}/f/{name}"))
    async with lost(tmp_path, "a1-own") as (deposit, path):
        for _ in range(2):
            for server in servers:
                keeper = await server.answer({})
                assert keeper is not None
                await wait_kept(deposit)
                keeper.close()
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not any(request for server in servers for request in server.unanswered())
            ring(path)
    for server in servers:
        server.close()


async def test_the_keeper_that_closed_the_channel_is_not_asked_again(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir(mode=0o700)
    server = Server(f"{tmp_path}/f/server")
    async with lost(tmp_path, keeper=os.getpid()) as (deposit, _):
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not deposit.is_kept
        assert server.unanswered() == [b""]
    server.close()


async def test_a_server_that_rings_is_asked_while_another_one_is_stopped(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir(mode=0o700)
    stopped = Server(f"{tmp_path}/f/a1-other")
    async with lost(tmp_path, "a1-own") as (deposit, path):
        own = Server(path)
        ring(path)
        keeper = await own.answer({})
        await wait_kept(deposit)
        assert keeper is not None
        with pytest.raises(BrokenPipeError):  # it is continued
            await stopped.answer({})
        assert not stopped.unanswered()
        assert deposit.is_kept
        keeper.close()
        own.close()
    stopped.close()


async def test_a_stopped_server_is_asked_after_the_others_and_may_be_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registering, "_LATE", 0.05)
    (tmp_path / "f").mkdir(mode=0o700)
    own, other = (Server(f"{tmp_path}/f/{name}") for name in ("a1-own", "a1-other"))
    async with lost(tmp_path, "a1-own") as (deposit, _):
        assert await other.answer({"error": "it is the wrong one"}) is None
        await trio.testing.wait_all_tasks_blocked(0.05)
        with pytest.raises(BrokenPipeError):
            await own.answer({})
        keeper = await own.answer({})
        await wait_kept(deposit)
        assert keeper is not None
        keeper.close()
    own.close()
    other.close()


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


async def test_a_server_is_started_once_and_not_after_an_end_on_purpose(tmp_path: Path) -> None:
    for on_purpose in (False, True):
        started: list[int] = []

        async def start(into: list[int] = started) -> bool:
            into.append(1)
            return False

        async with kept(tmp_path, start) as channel:
            if on_purpose:
                channel.send(encode(END))
            await trio.testing.wait_all_tasks_blocked()
            channel.close()
            await trio.testing.wait_all_tasks_blocked()
        assert started == ([] if on_purpose else [1])


async def test_a_server_that_ends_on_purpose_need_not_have_read_all_messages(
    tmp_path: Path,
) -> None:
    started: list[int] = []

    async def start() -> bool:
        started.append(1)
        return False

    async with kept(tmp_path, start) as channel:
        await trio.testing.wait_all_tasks_blocked()
        channel.send(encode(END))
        channel.close()
        await trio.testing.wait_all_tasks_blocked()
    assert started == []


async def test_a_server_that_ends_may_listen_longer_than_its_channels_are_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registering, "is_ending", lambda pid: pid == os.getpid())
    (tmp_path / "f").mkdir(mode=0o700)
    server = Server(f"{tmp_path}/f/server")
    started = trio.Event()

    async def start() -> bool:
        started.set()
        return True

    async with kept(tmp_path, start) as channel:
        channel.close()
        await trio.testing.wait_all_tasks_blocked()
        server.close()
        await started.wait()


async def test_a_server_that_refuses_is_asked_once_by_a_daemon_that_may_start_another(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "f").mkdir(mode=0o700)
    server = Server(f"{tmp_path}/f/server")

    async def start() -> bool:
        return False

    async with kept(tmp_path, start, is_other=True) as channel:
        channel.close()
        assert await server.answer({"error": "version 2"}) is None
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not any(server.unanswered())
    server.close()
    assert capfd.readouterr().err.count('reason="version 2"') == 1


async def test_a_server_that_ended_after_it_rang_is_followed_by_another(tmp_path: Path) -> None:
    starts = 0

    async def start() -> bool:
        nonlocal starts
        starts += 1
        await trio.sleep_forever()
        return True

    async with kept(tmp_path, start) as channel:
        channel.close()
        await trio.testing.wait_all_tasks_blocked()
        for count in (1, 2, 3):
            assert starts == count
            ring(f"{tmp_path}/f/server")
            await trio.testing.wait_all_tasks_blocked(0.01)


async def test_the_answer_of_a_server_that_closes_the_connection_counts() -> None:
    """The kernel may report the end first."""
    ours, theirs = late_pair()
    with ours, theirs:
        theirs.send(b"{}")
        reader, writer = os.pipe()
        channel, reason = await registering._ask(ours, reader, math.inf)
        os.close(reader)
        os.close(writer)
    assert channel is not None
    channel.close()
    assert reason == ""
