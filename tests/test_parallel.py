"""How the tests of a run are grouped and ordered; each test's time counts for its ring."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parallel import group_of, longest_first, ring_of, rings

TESTS = Path(__file__).parent


def test_a_ring_is_a_directory_below_tests() -> None:
    assert ring_of(TESTS / "stdio/whole/test_policies.py") == "stdio"
    assert ring_of(TESTS / "test_reaper.py") == "shim"
    assert ring_of(Path("/elsewhere/test_it.py")) == "shim"


def test_the_slowest_ring_comes_first() -> None:
    lines = rings([("a", 1.0), ("b", 2.5), ("a", 0.5)])
    assert [line.split() for line in lines] == [
        ["2.5", "s", "1", "tests", "b"],
        ["1.5", "s", "2", "tests", "a"],
    ]


@pytest.fixture(params=["one", "two"])
def containerd(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_tests_of_one_manager_are_one_group(
    containerd: str, request: pytest.FixtureRequest
) -> None:
    assert group_of(request.node) == f"shim under {containerd}"


def test_other_tests_are_grouped_by_module(request: pytest.FixtureRequest) -> None:
    assert group_of(request.node) == Path(__file__).name


@pytest.mark.alone
@pytest.mark.parametrize("number", ["one"])
def test_a_long_test_is_a_group_of_its_own(number: str, request: pytest.FixtureRequest) -> None:
    name = f"test_a_long_test_is_a_group_of_its_own[{number}]"
    assert group_of(request.node) == f"{Path(__file__).name}::{name}"


def test_the_longest_group_is_first_and_the_most_tests_before_fewer() -> None:
    groups = ["few", "many", "many", "process/test_leaks.py"]  # the last one has its seconds
    assert longest_first(groups) == ["process/test_leaks.py", "many", "few"]
