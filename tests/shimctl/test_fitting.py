"""Tables fit into the terminal, and only the columns that may be cut are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shimctl.cli.fitting import LEAST, cut, fitted


@pytest.mark.parametrize(
    ("widths", "room", "expected"),
    [
        ([10, 20, 30], 64, [10, 20, 30]),
        ([10, 20, 30], 60, [10, 20, 26]),
        ([10, 20, 30], 50, [10, 18, 18]),
        ([10, 20, 30], 49, [10, 17, 18]),
        ([10, 20, 30], 30, [10, 8, 8]),
        ([10, 20, 30], 1, [10, 8, 8]),
        ([10, 5, 30], 30, [10, 5, 11]),
        ([10], 5, [10]),
    ],
)
def test_the_widest_elastic_columns_are_cut_first(
    widths: list[int], room: int, expected: list[int]
) -> None:
    assert fitted(widths, room, {1, 2}) == expected


@given(st.lists(st.integers(0, 200), min_size=1, max_size=9), st.integers(0, 400))
def test_the_columns_fit_if_they_can_and_fixed_ones_stay(widths: list[int], room: int) -> None:
    elastic = set(range(0, len(widths), 2))
    found = fitted(widths, room, elastic)
    gaps = 2 * (len(widths) - 1)
    for at, (before, after) in enumerate(zip(widths, found, strict=True)):
        assert after == before or (at in elastic and LEAST <= after < before)
    least = sum(min(w, LEAST) if at in elastic else w for at, w in enumerate(widths))
    if sum(widths) + gaps <= room:
        assert found == widths
    else:
        assert sum(found) + gaps == max(room, least + gaps)


def test_a_cut_text_ends_with_an_ellipsis() -> None:
    assert cut("abcdef", 6) == "abcdef"
    assert cut("abcdef", 5) == "abcd…"
    assert cut("abcdef", 1) == "…"
