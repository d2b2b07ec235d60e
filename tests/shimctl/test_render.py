from __future__ import annotations

import json
import re
from datetime import UTC, datetime

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from shim.text import printable
from shimctl.cli import render
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
    assert render.table(("AT",), [(WHEN,)]) == "AT\n2026-11-23T10:20:30Z"


def test_a_name_cannot_move_the_readers_cursor() -> None:
    assert render.table(("ID",), [("a\x1b[2Jb\n",)]) == "ID\na\\x1b[2Jb\\n"


@given(st.text())
def test_printable_text_is_one_line_of_printable_characters(text: str) -> None:
    assert printable(text).isprintable()


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


def test_colours_are_for_who_wants_them_and_change_no_column() -> None:
    rows = [(render.status("running"), "a"), (render.status("exited 7, no shim"), "b")]
    plain = render.table(("STATUS", "ID"), rows)
    coloured = render.table(("STATUS", "ID"), rows, colours=True)
    assert "\x1b" not in plain
    assert "\x1b[32mrunning          \x1b[0m  a" in coloured
    assert re.sub(r"\x1b\[[0-9]*m", "", coloured) == plain


@pytest.mark.parametrize("text", ["", "never heard of", " "])
def test_a_status_nobody_knows_has_no_colour(text: str) -> None:
    assert render.status(text).colour is None


def test_a_coloured_name_cannot_move_the_readers_cursor_either() -> None:
    shown = render.table(("S",), [(render.status("running\x1b[2J"),)], colours=True)
    assert "\x1b[2J" not in shown


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.just(WHEN) | st.just(Status.PAUSED),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


HOSTILE = "a\x1b]0;x\x07\x9b2J\u202eb\u2066\x85\u2028\x7f\udcff\U000e0041\r"


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
@example({HOSTILE: [HOSTILE * 40, HOSTILE.encode(errors="surrogateescape")]})
def test_no_text_moves_the_readers_cursor_in_any_format(value: object) -> None:
    for shown in (render.as_json(value), render.as_json(value, indent=None)):
        assert shown.replace("\n", "").isprintable()
    assert render.as_yaml(value).replace("\n", "").isprintable()


def test_what_is_escaped_is_read_again_as_it_was() -> None:
    for value in (HOSTILE, {HOSTILE: [HOSTILE * 40]}):
        assert json.loads(render.as_json(value)) == value
        assert yaml.safe_load(render.as_yaml(value)) == value


@given(VALUES)
@example({"\x85": "a\u2028b"})
def test_yaml_says_what_json_says(value: object) -> None:
    assert yaml.safe_load(render.as_yaml(value)) == json.loads(render.as_json(value))


def test_yaml_keeps_the_order_of_the_fields() -> None:
    assert render.as_yaml(Stdio("i", "o", "", terminal=True)) == (
        "stdin: i\nstdout: o\nstderr: ''\nterminal: true\n"
    )
