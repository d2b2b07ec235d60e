"""A daemon begins to move to another fork server; a test is both servers."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
import trio
import trio.testing

from shim.errors import UnavailableError, WrongStateError
from shim.recovery import moving
from shim.recovery.deposit import Deposit
from shim.recovery.messages import EXIT, encode
from tests.recovery.keeper import Keeper, Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from shim.recovery.turn import Turn


class Answering(Keeper):
    """A keeper that knows no exit, and says so."""

    def answer(self, name: str) -> None:
        self.channel.send(encode(EXIT, name))

    async def run(self) -> None:
        while self.take():
            await trio.lowlevel.wait_readable(self.channel)


@asynccontextmanager
async def opened(
    path: Path, reply: dict[str, str] | None, *, answers: bool
) -> AsyncIterator[tuple[Deposit, Keeper]]:
    """Yield a deposit, and its keeper, which may not answer.

    A server at ``path`` answers a request by ``reply``, None not at all.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    deposit, keeper, server = Deposit(ours), Answering(theirs), Server(str(path))
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(deposit.run)
            if answers:
                nursery.start_soon(keeper.run)
            if reply is not None:
                nursery.start_soon(_answer, server, reply)
            yield deposit, keeper
            nursery.cancel_scope.cancel()
    deposit.close()
    keeper.close()
    server.close()


async def _answer(server: Server, reply: dict[str, str]) -> None:
    if (keeper := await server.answer(reply)) is not None:
        keeper.close()


async def begin(deposit: Deposit, path: Path) -> None:
    async with moving.open_move(deposit, str(path)):
        pass


@pytest.mark.parametrize(("answers", "reply"), [(False, {}), (True, None)])
async def test_a_fork_server_that_does_not_answer_is_named_and_nothing_has_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool, reply: dict[str, str] | None
) -> None:
    monkeypatch.setattr(moving, "_ANSWERS", 0.1)
    async with opened(tmp_path / "s", reply, answers=answers) as (deposit, _):
        named = f"{tmp_path}/s" if answers else rf"process {deposit.keeper}\)"
        with pytest.raises(UnavailableError, match=f"{named} did not answer in 0.1 s"):
            await begin(deposit, tmp_path / "s")
        assert deposit.is_kept


async def test_a_move_begins_when_both_fork_servers_have_answered(tmp_path: Path) -> None:
    async with opened(tmp_path / "s", {}, answers=True) as (deposit, _):
        await begin(deposit, tmp_path / "s")


async def test_the_refusal_of_a_fork_server_is_an_error(tmp_path: Path) -> None:
    async with opened(tmp_path / "s", {"error": "too old"}, answers=True) as (deposit, _):
        with pytest.raises(WrongStateError, match="too old"):
            await begin(deposit, tmp_path / "s")


async def test_no_server_at_the_path_is_an_error(tmp_path: Path) -> None:
    async with opened(tmp_path / "s", {}, answers=True) as (deposit, _):
        with pytest.raises(UnavailableError, match="no process listens"):
            await begin(deposit, tmp_path / "other")


async def test_the_end_of_the_keeper_is_no_answer(tmp_path: Path) -> None:
    async with opened(tmp_path / "s", {}, answers=False) as (deposit, keeper):
        answers = []

        async def ask() -> None:
            answers.append(await deposit.wait_answer())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            keeper.close()
        assert answers == [False]
    async with opened(tmp_path / "t", {}, answers=True) as (deposit, _):
        assert await deposit.wait_answer()


async def test_a_daemon_without_a_keeper_does_not_leave_its_turn(tmp_path: Path) -> None:
    left: list[bool] = []
    turn = cast("Turn", SimpleNamespace(leave=lambda: left.append(True)))
    deposit = Deposit(None, f"{tmp_path}/s")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, pytest.raises(UnavailableError, match="its fork server has ended"):
        moving.move(deposit, turn, f"{tmp_path}/s", ours)
    deposit.close()
    assert not left


async def test_the_end_of_the_keeper_ends_a_move_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path / "s", {}, answers=False) as (deposit, keeper):
        keeper.channel.close()
        with pytest.raises((UnavailableError, WrongStateError), match="fork server"):
            await begin(deposit, tmp_path / "s")
