"""A state in two slots survives the death of its writer at any moment."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time

import pytest

from shim.errors import InvalidError
from shim.recovery.slot import StateSlot


def test_a_new_slot_has_no_state() -> None:
    slot = StateSlot.new()
    try:
        assert slot.read() == b""
    finally:
        slot.close()


def test_the_last_state_is_read_by_another_holder_of_the_file() -> None:
    slot = StateSlot.new()
    for state in (b"first", b"a longer second", b"3"):
        slot.write(state)
        other = StateSlot(os.dup(slot.fd))
        assert other.read() == state
        other.close()
    slot.close()


def test_the_memory_of_a_large_state_is_given_back() -> None:
    slot = StateSlot.new()
    for _ in range(2):
        slot.write(b"x" * (1 << 20))
        slot.write(b"y" * (1 << 20))
        assert os.fstat(slot.fd).st_blocks * 512 < 3 << 19, "one of the two"
        slot.write(b"small")
        assert slot.read() == b"small"
        assert os.fstat(slot.fd).st_blocks * 512 < 1 << 19
    slot.close()


def test_the_next_writer_goes_on_from_the_current_state() -> None:
    slot = StateSlot.new()
    slot.write(b"first")
    other = StateSlot(os.dup(slot.fd))
    other.write(b"second")
    third = StateSlot(os.dup(slot.fd))
    assert third.read() == b"second"
    for one in (slot, other, third):
        one.close()


def test_a_changed_byte_is_found() -> None:
    slot = StateSlot.new()
    slot.write(b"the state")
    os.pwrite(slot.fd, b"x", 64 + 8)
    with pytest.raises(InvalidError, match="damaged"):
        slot.read()
    slot.close()


def test_a_length_that_no_state_has_is_found() -> None:
    slot = StateSlot.new()
    slot.write(b"the state")
    os.pwrite(slot.fd, b"\xff\xff\xff\xff", 64)
    with pytest.raises(InvalidError, match="damaged"):
        slot.read()
    slot.close()


@pytest.mark.parametrize("done", [0, 1])
def test_a_first_write_that_ends_between_its_system_calls_leaves_no_state(
    monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    slot, pwrite, calls = StateSlot.new(), os.pwrite, itertools.count()

    def end_after(fd: int, data: bytes, at: int) -> int:
        if next(calls) == done:
            raise InterruptedError
        return pwrite(fd, data, at)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", end_after)
        with pytest.raises(InterruptedError):
            slot.write(b"first")
    other = StateSlot(os.dup(slot.fd))
    assert other.read() == b""
    other.write(b"second")
    assert StateSlot(slot.fd).read() == b"second"
    other.close()
    slot.close()


def test_a_writer_killed_at_any_moment_leaves_the_state_before_or_after() -> None:
    for _ in range(100):
        slot = StateSlot.new()
        slot.write(b"0")
        pid = os.fork()
        if pid == 0:
            number = 0
            while True:
                number += 1
                slot.write(b"%d " % number * 5000)
        time.sleep(random.uniform(0.0005, 0.003))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        words = StateSlot(os.dup(slot.fd)).read().split()
        assert len(set(words)) == 1
        assert len(words) in (1, 5000)
        slot.close()
