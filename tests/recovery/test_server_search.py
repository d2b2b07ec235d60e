"""Which fork server a daemon without a keeper asks, and when it starts one."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from shim.linux.peers import Peer
from shim.recovery import registering, requests
from shim.recovery.deposit import Deposit
from shim.recovery.messages import END, encode
from shim.recovery.registering import ring
from tests.recovery.keeper import Server
from tests.recovery.registrants import kept, lost, wait_kept

if TYPE_CHECKING:
    from pathlib import Path


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
