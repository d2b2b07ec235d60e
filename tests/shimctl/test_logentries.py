"""The lines of a log as entries: their stream, time and content, and the times of --since."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import InvalidError
from shimctl.standalone.logentries import parse_entry, parse_json_entry, parse_since

KEYS = ["log", "stream", "time"]
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def entry(second: int, text: str, *, stream: str = "stdout", tag: str = "F") -> str:
    return f"2026-11-24T12:00:{second:02d}.123456789Z {stream} {tag} {text}\n"


def test_an_entry_is_taken_apart() -> None:
    line = b"2016-10-06T00:17:09.669794202Z stdout P:7 log  content 1 "
    assert (found := parse_entry(line)) is not None
    assert (found.stream, found.ends, found.content) == (b"stdout", False, b"log  content 1 ")
    assert found.at == datetime(2016, 10, 6, 0, 17, 9, 669794, tzinfo=UTC)
    assert (found := parse_entry(b"2016-10-06T02:17:09+02:00 stderr F ")) is not None
    assert (found.at, found.content) == (datetime(2016, 10, 6, 0, 17, 9, tzinfo=UTC), b"")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"plain text",
        b"2016-10-06T00:17:09Z stdin F x",
        b"2016-10-06T00:17:09Z stdout X x",
        b"2016-10-06T00:17:09 stdout F x",
        b"2016-02-31T00:17:09Z stdout F x",
        b"2016-10-06T00:17:09Z stdout F",
    ],
)
def test_what_is_no_entry_is_told_from_one(line: bytes) -> None:
    assert parse_entry(line) is None


@given(st.binary())
def test_no_line_is_an_error(line: bytes) -> None:
    parse_entry(line)
    parse_json_entry(line)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(KEYS), inner),
    )
)
def test_no_json_is_an_error(value: object) -> None:
    parse_json_entry(json.dumps(value).encode())


def json_entry(second: int, text: str, *, stream: str = "stdout") -> str:
    time = f"2026-11-24T12:00:{second:02d}.123456789Z"
    return json.dumps({"log": text, "stream": stream, "attrs": {"a": "b"}, "time": time}) + "\n"


def test_a_json_entry_is_taken_apart() -> None:
    found = parse_json_entry(json_entry(9, "caf\xe9\n", stream="stderr").encode())
    assert found is not None
    assert (found.stream, found.ends, found.content) == (b"stderr", True, "caf\xe9".encode())
    assert found.at == datetime(2026, 11, 24, 12, 0, 9, 123456, tzinfo=UTC)
    assert (found := parse_json_entry(json_entry(9, "cut").encode())) is not None
    assert (found.ends, found.content) == (False, b"cut")


@pytest.mark.parametrize(
    ("text", "ago"),
    [("10m", 600), ("1h30m", 5400), ("45s", 45), ("0.5s", 0.5), ("2d", 172_800), ("1d1s", 86_401)],
)
def test_a_duration_is_how_long_ago(text: str, ago: float) -> None:
    assert parse_since(text, NOW) == NOW - timedelta(seconds=ago)


def test_a_time_is_rfc_3339() -> None:
    assert parse_since("2026-11-24T13:00:00+01:00", NOW) == NOW
    assert parse_since("2026-11-24T12:00:00.000000000Z", NOW) == NOW


@pytest.mark.parametrize("text", ["", "soon", "10", "10x", "m", "99999999999999d", "24.11.2026"])
def test_what_is_no_time_is_said_to_be_none(text: str) -> None:
    with pytest.raises(InvalidError, match="is not a time"):
        parse_since(text, NOW)
