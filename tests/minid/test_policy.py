"""When a container runs again: decisions, without a container."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from minid.policy import KINDS, Backoff, Record, Restart

BACKOFF = Backoff(start=1, cap=8, reset=10)


def lives(restart: Restart, *codes: int | None, each: float = 1) -> Record:
    """Let a container live and end as often as its policy lets it."""
    record, now = Record(), 1000.0
    for code in codes:
        record = record.begin(now)
        now += each
        record = record.settle(code, now, restart, BACKOFF)
        now = max(now, record.not_before)
    return record


@pytest.mark.parametrize(
    ("kind", "code", "again"),
    [
        ("no", 0, False),
        ("no", 1, False),
        ("on-failure", 0, False),
        ("on-failure", 1, True),
        ("on-failure", 137, True),
        ("on-failure", None, True),
        ("always", 0, True),
        ("always", 3, True),
        ("unless-stopped", 0, True),
        ("unless-stopped", None, True),
    ],
)
def test_the_policy_and_the_code_decide(kind: str, code: int | None, again: bool) -> None:
    assert lives(Restart(kind), code).wanted is again


def test_on_failure_gives_up_after_so_many_restarts() -> None:
    assert lives(Restart("on-failure", 2), 1, 1).wanted
    record = lives(Restart("on-failure", 2), 1, 1, 1)
    assert (record.wanted, record.generation) == (False, 3)


def test_pauses_double_up_to_the_cap() -> None:
    record, pauses = Record(), []
    for _ in range(6):
        record = record.begin(0).settle(1, 5, Restart("always"), BACKOFF)
        pauses.append(record.not_before - 5)
    assert pauses == [1, 2, 4, 8, 8, 8]


def test_a_good_run_makes_the_pauses_begin_anew() -> None:
    bad = lives(Restart("always"), 1, 1, 1)
    assert bad.restarts == 3
    good = bad.begin(0).settle(1, 10, Restart("always"), BACKOFF)
    assert (good.restarts, good.not_before) == (1, 11)


def test_who_was_stopped_stays_so_whatever_the_policy() -> None:
    record = replace(Record().begin(0), stopped=True)
    assert record.ending
    after = record.settle(143, 1, Restart("always"), BACKOFF)
    assert not after.wanted
    assert after.up().wanted


def test_who_is_to_be_replaced_is_followed_whatever_the_policy_and_at_once() -> None:
    record = Record().begin(0).again()
    assert record.ending
    after = record.settle(143, 1, Restart("no"), BACKOFF)
    assert after.wanted
    assert after.wait(1, BACKOFF) == 0
    assert not after.begin(1).ending


def test_a_clock_set_back_costs_one_cap_at_most() -> None:
    record = lives(Restart("always"), 1)
    assert record.wait(-1e9, BACKOFF) == 8


@given(
    st.sampled_from(KINDS),
    st.lists(st.tuples(st.none() | st.integers(0, 255), st.floats(0, 1e6)), max_size=30),
)
def test_an_end_is_taken_into_account_once_and_pauses_stay_within_their_bounds(
    kind: str, ends: list[tuple[int | None, float]]
) -> None:
    record = Record()
    for code, ran in ends:
        record = record.begin(0)
        assert record.under_way
        record = record.settle(code, ran, Restart(kind), BACKOFF)
        assert not record.under_way
        assert 0 <= record.wait(ran, BACKOFF) <= BACKOFF.cap
