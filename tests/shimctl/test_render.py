from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shimctl import render
from shimctl.values import Status, Stdio, TaskState

WHEN = datetime(2026, 11, 23, 10, 20, 30, 400000, UTC)


def test_a_table_is_aligned_and_absence_is_a_dash() -> None:
    shown = render.table(
        ("NAMESPACE", "ID", "PID"), [("default", "redis", 4711), ("k8s.io", "a", None)]
    )
    assert shown == (
        "NAMESPACE  ID     PID\n"
        "default    redis  4711\n"
        "k8s.io     a      -"
    )  # fmt: skip


def test_a_table_without_rows_is_its_headers() -> None:
    assert render.table(("A", "B"), []) == "A  B"


def test_times_in_a_table_are_in_seconds_with_their_zone() -> None:
    assert render.table(("AT",), [(WHEN,)]) == "AT\n2026-11-23 10:20:30+00:00"


def test_a_name_cannot_move_the_readers_cursor() -> None:
    assert render.table(("ID",), [("a\x1b[2Jb\n",)]) == "ID\na\\x1b[2Jb\\n"


@given(st.text())
def test_printable_text_is_one_line_of_printable_characters(text: str) -> None:
    assert render.printable(text).isprintable()


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (None, None),
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1.0KiB"),
        (1536 * 1024, "1.5MiB"),
        (1024 * 1024 - 1, "1.0MiB"),
        (1 << 40, "1.0TiB"),
        (1 << 61, "2048.0PiB"),
    ],
)
def test_sizes_have_one_decimal_and_a_binary_unit(count: int | None, shown: str | None) -> None:
    assert render.size(count) == shown


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0.000s"), (0.0123, "0.012s"), (75.25, "75.2s"), (3600, "1h00m"), (7530, "2h05m")],
)
def test_durations_get_coarser_as_they_grow(number: float, shown: str) -> None:
    assert render.seconds(number) == shown


def test_json_has_plain_names_times_and_null() -> None:
    state = TaskState("c", "", "/b", 7, Status.STOPPED, Stdio(stdout="/f"), 137, WHEN)
    assert json.loads(render.as_json([state])) == [
        {
            "id": "c",
            "exec_id": "",
            "bundle": "/b",
            "pid": 7,
            "status": "stopped",
            "stdio": {"stdin": "", "stdout": "/f", "stderr": "", "terminal": False},
            "exit_status": 137,
            "exited_at": "2026-11-23T10:20:30.400000Z",
        }
    ]


def test_json_on_one_line_is_one_line() -> None:
    assert render.as_json({"a": ("x", None)}, indent=None) == '{"a": ["x", null]}'
