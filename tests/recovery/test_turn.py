"""Of the processes that could go on with a daemon's states, one has the turn."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from shim.recovery import turn as turn_module
from shim.recovery.slot import StateSlot
from shim.recovery.turn import Turn, count_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def slot() -> Iterator[StateSlot]:
    with StateSlot.new() as slot:
        slot.write(b"state")
        yield slot


def other(slot: StateSlot, work: Callable[[Turn], object]) -> int:
    """Fork a process that runs ``work`` with a turn, and stays until it is killed."""
    ready, done = os.pipe()
    pid = os.fork()
    if pid == 0:
        work(Turn(slot.fd))
        os.write(done, b"1")
        signal.pause()
    os.close(done)
    assert os.read(ready, 1)
    os.close(ready)
    return pid


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_a_second_process_waits_and_gets_the_turn_of_a_killed_one(slot: StateSlot) -> None:
    pid = other(slot, lambda turn: turn.take(1))
    turn = Turn(slot.fd)
    with pytest.raises(TimeoutError, match="another process"):
        turn.take(0.05)
    end(pid)
    assert turn.take(1)
    turn.leave()


def serve(turn: Turn) -> None:
    turn.take(1)
    turn.serve()


def test_a_second_process_is_not_needed_when_the_first_one_serves(slot: StateSlot) -> None:
    pid = other(slot, serve)
    turn = Turn(slot.fd)
    assert not turn.take(10)
    end(pid)
    assert turn.take(1)
    turn.leave()


def test_a_process_killed_as_soon_as_it_is_seen_to_serve_has_counted(slot: StateSlot) -> None:
    """The other one may have ended because of the lock."""
    lock = Turn._lock

    def lock_and_die(turn: Turn, byte: int) -> bool:
        is_locked = lock(turn, byte)
        if byte == turn_module._SERVING:
            os.kill(os.getpid(), signal.SIGKILL)
        return is_locked

    pid = os.fork()
    if pid == 0:
        Turn._lock = lock_and_die  # type: ignore[assignment, method-assign] # in this process only
        serve(Turn(slot.fd))
        os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert count_of(slot.fd) == 1


def test_a_turn_that_was_left_is_free(slot: StateSlot) -> None:
    first, second = Turn(slot.fd), Turn(slot.fd)
    assert first.take(0)
    first.leave()
    first.leave()
    assert second.take(0)
    second.leave()


def test_a_process_that_waited_is_not_needed_after_the_first_one_served_and_ended(
    slot: StateSlot,
) -> None:
    waiting = Turn(slot.fd)
    end(other(slot, serve))
    assert not waiting.take(1)
    waiting.leave()
    following = Turn(slot.fd)
    assert following.take(1)
    following.leave()
    assert slot.read() == b"state"
