"""A daemon whose keeper has ended registers with the next fork server, and loses no fd."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from shim.linux.fifos import Fd
from shim.names import NO_KEEPER
from shim.recovery import registering
from shim.recovery.inherited import DAEMON
from shim.recovery.messages import END, REGISTER, encode
from shim.recovery.registering import ring
from tests.latesocket import late_pair
from tests.recovery.keeper import Server, end_of
from tests.recovery.registrants import kept, lost, wait_kept

if TYPE_CHECKING:
    from pathlib import Path


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
