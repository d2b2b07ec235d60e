"""Of the processes that could go on with a daemon's states, one has the turn."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from shim.recovery.slot import StateSlot
from shim.recovery.turn import Claim, Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def slot() -> Iterator[StateSlot]:
    with StateSlot.new() as slot:
        slot.write(b"state")
        yield slot


@pytest.fixture
def claims(slot: StateSlot) -> tuple[Claim, Claim]:
    """Return those of the two fork servers of a move."""
    return Claim.new(slot.fd), Claim.new(slot.fd)


def other(slot: StateSlot, claim: Claim, work: Callable[[Turn], object]) -> int:
    """Fork a process that runs ``work`` with a turn, and stays until it is killed."""
    ready, done = os.pipe()
    pid = os.fork()
    if pid == 0:
        work(Turn(slot.fd, claim))
        os.write(done, b"1")
        signal.pause()
    os.close(done)
    assert os.read(ready, 1)
    os.close(ready)
    return pid


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def takes(slot: StateSlot, claim: Claim) -> bool:
    """Return whether a process of the claim may act."""
    turn = Turn(slot.fd, claim)
    try:
        return turn.take(1)
    finally:
        turn.leave()


def serve(turn: Turn) -> None:
    assert turn.take(1)
    turn.serve()


def test_a_second_process_waits_and_gets_the_turn_of_a_killed_one(
    slot: StateSlot, claims: tuple[Claim, Claim]
) -> None:
    first, second = claims
    pid = other(slot, first, lambda turn: turn.take(1))
    turn = Turn(slot.fd, second)
    with pytest.raises(TimeoutError, match="another process"):
        turn.take(0.05)
    end(pid)
    assert turn.take(1)
    turn.leave()


def test_a_second_process_is_not_needed_when_the_first_one_serves(
    slot: StateSlot, claims: tuple[Claim, Claim]
) -> None:
    first, second = claims
    pid = other(slot, first, serve)
    turn = Turn(slot.fd, second)
    assert not turn.take(10)
    end(pid)
    assert not turn.take(1)
    turn.leave()


def test_a_server_may_replace_the_process_that_served_and_the_other_may_not(
    slot: StateSlot, claims: tuple[Claim, Claim]
) -> None:
    """Also if the other one was stopped, and forks its replacement only now."""
    first, second = claims
    for _ in range(2):
        end(other(slot, first, serve))
        assert takes(slot, first)
        assert not takes(slot, second)
    assert slot.read() == b"state"


def test_the_claim_of_a_server_ends_when_the_next_move_has_a_replacement_that_serves(
    slot: StateSlot, claims: tuple[Claim, Claim]
) -> None:
    first, second = claims
    end(other(slot, first, serve))
    first, third = Claim.new(slot.fd), Claim.new(slot.fd)  # the next move
    assert takes(slot, first)
    end(other(slot, third, serve))
    assert [takes(slot, claim) for claim in (first, second, third)] == [False, False, True]


def test_a_server_without_another_one_may_always_replace_its_daemon(slot: StateSlot) -> None:
    claim = Claim.new()
    end(other(slot, claim, serve))
    assert takes(slot, claim)


def test_a_turn_that_was_left_is_free(slot: StateSlot, claims: tuple[Claim, Claim]) -> None:
    first, second = (Turn(slot.fd, claim) for claim in claims)
    assert first.take(0)
    first.leave()
    first.leave()
    assert second.take(0)
    second.leave()
