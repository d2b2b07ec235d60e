"""The state table as callers meet it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.container.lifecycle import TABLE, Lifecycle, Op, State
from shim.errors import NotFoundError, WrongStateError


def after(*operations: Op) -> Lifecycle:
    life = Lifecycle()
    for operation in operations:
        life.check(operation)
        life.apply(operation)
    return life


def test_a_process_lives_through_created_running_stopped_deleted() -> None:
    assert after(Op.START, Op.EXIT, Op.DELETE).state is State.DELETED


def test_a_running_process_cannot_be_deleted() -> None:
    with pytest.raises(WrongStateError, match="cannot delete a running process"):
        after(Op.START).check(Op.DELETE)


def test_a_created_process_can_be_deleted() -> None:
    after().check(Op.DELETE)


@pytest.mark.parametrize("life", [after(Op.EXIT), after(Op.START, Op.EXIT, Op.DELETE)])
def test_killing_what_has_ended_is_not_found(life: Lifecycle) -> None:
    with pytest.raises(NotFoundError, match="process already finished"):
        life.check(Op.KILL)


def test_nothing_runs_in_a_paused_container_but_it_can_be_killed() -> None:
    paused = after(Op.START, Op.PAUSE)
    paused.check(Op.KILL)
    with pytest.raises(WrongStateError, match="exec in a paused"):
        paused.check(Op.EXEC)


def test_a_process_that_died_at_its_birth_cannot_be_started() -> None:
    with pytest.raises(WrongStateError, match="cannot start a stopped process"):
        after(Op.EXIT).check(Op.START)


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (Op.START, "start"),
        (Op.EXEC, "exec in"),
        (Op.PAUSE, "pause"),
        (Op.RESUME, "resume"),
        (Op.CHECKPOINT, "checkpoint"),
        (Op.UPDATE, "update"),
        (Op.RESIZE, "resize"),
        (Op.EXIT, "exit"),
    ],
)
def test_a_refusal_names_what_was_asked_and_the_state(operation: Op, words: str) -> None:
    with pytest.raises(WrongStateError, match=rf"^cannot {words} a stopped process$"):
        after(Op.EXIT).check(operation)
    with pytest.raises(NotFoundError, match=rf"^cannot {words} a deleted process$"):
        after(Op.DELETE).check(operation)


def test_a_refusal_names_each_other_state() -> None:
    with pytest.raises(WrongStateError, match=r"^cannot pause a created process$"):
        after().check(Op.PAUSE)
    with pytest.raises(WrongStateError, match=r"^cannot start a running process$"):
        after(Op.START).check(Op.START)
    with pytest.raises(WrongStateError, match=r"^cannot delete a paused process$"):
        after(Op.START, Op.PAUSE).check(Op.DELETE)


def test_each_state_has_the_name_that_a_message_shows() -> None:
    names = ["created", "running", "paused", "stopped", "deleted"]
    assert [state.value for state in State] == names


def test_each_operation_is_called_what_the_log_and_a_manager_read() -> None:
    assert (Op.KILL.value, Op.DELETE.value) == ("kill", "delete")


def test_what_happened_too_late_changes_nothing() -> None:
    life = after(Op.START, Op.EXIT)
    life.apply(Op.PAUSE)
    assert life.state is State.STOPPED


@given(st.lists(st.sampled_from(Op)))
def test_only_what_is_in_the_table_changes_a_state(operations: list[Op]) -> None:
    life = Lifecycle()
    for operation in operations:
        before = life.state
        try:
            life.check(operation)
        except (NotFoundError, WrongStateError):
            assert operation not in TABLE[before]
            continue
        life.apply(operation)
        assert life.state is TABLE[before][operation]


@given(st.lists(st.sampled_from(Op)))
def test_there_is_no_way_back_from_the_end(operations: list[Op]) -> None:
    life = after(Op.START, Op.EXIT)
    for operation in operations:
        life.apply(operation)
    assert life.state in (State.STOPPED, State.DELETED)
