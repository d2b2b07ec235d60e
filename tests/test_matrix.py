from __future__ import annotations

from typing import Literal

import pytest

from tests.matrix import Matrix


def report(
    test: str,
    manager: str,
    outcome: Literal["passed", "failed", "skipped"] = "passed",
    when: Literal["setup", "call", "teardown"] = "call",
    not_applicable: str = "",
) -> pytest.TestReport:
    said: list[tuple[str, object]] = [("manager", manager), ("scenario", "Run")]
    if not_applicable:
        said.append(("not applicable", not_applicable))
    place = (test, 1, test)
    reason = ("file", 1, "Skipped: not here") if outcome == "skipped" else None
    return pytest.TestReport(test, place, {}, outcome, reason, when, user_properties=said)


def test_columns_are_sorted_as_versions_and_tests_are_counted() -> None:
    matrix = Matrix()
    for test, manager in (("a", "d 20.10"), ("b", "d 20.10"), ("a", "d 9.1")):
        matrix.add(report(test, manager, when="setup"))
        matrix.add(report(test, manager))
    assert matrix.table().splitlines() == [
        "| scenarios | d 9.1 | d 20.10 |",
        "|---|---|---|",
        "| Run | 1 passed | 2 passed |",
        "| **all** | 1 passed | 2 passed |",
    ]


def test_a_failure_in_any_phase_is_a_failure() -> None:
    matrix = Matrix()
    matrix.add(report("a", "d 1"))
    matrix.add(report("a", "d 1", "failed", "teardown"))
    matrix.add(report("b", "d 1", "failed"))
    matrix.add(report("b", "d 1", "passed", "teardown"))
    assert "| Run | 2 failed |" in matrix.table()


def test_what_a_manager_cannot_do_is_said_with_its_reason() -> None:
    matrix = Matrix()
    matrix.add(report("a", "d 1", not_applicable="has no flag"))
    matrix.add(report("b", "d 1", "skipped", "setup"))
    table = matrix.table()
    assert "| Run | 2 n/a |" in table
    assert "n/a: d 1: has no flag" in table
    assert "n/a: d 1: not here" in table


def test_a_test_without_a_manager_is_not_in_the_table() -> None:
    matrix = Matrix()
    matrix.add(pytest.TestReport("a", ("a", 1, "a"), {}, "passed", None, "call"))
    assert not matrix.outcomes
