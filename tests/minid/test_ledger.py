"""The exits log: exactly one line for each generation, after any damage of the file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from minid.ledger import End, Ledger, read_record, write_json
from minid.policy import Record

if TYPE_CHECKING:
    from pathlib import Path

ENDS = [End("web", 1, 0, 1000.25), End("web", 2, 137, 1001.5), End("db", 1, None, 1002.0, "why")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "exits.jsonl"


def test_an_end_is_found_by_who_comes_next(path: Path) -> None:
    with Ledger(path) as ledger:
        for end in ENDS:
            ledger.record(end)
    with Ledger(path) as ledger:
        assert ledger.last == {"web": ENDS[1], "db": ENDS[2]}
        assert ledger.find("web", 2) == ENDS[1]
        assert ledger.find("web", 3) is None


def test_of_many_who_tell_of_an_end_the_first_counts(path: Path) -> None:
    with Ledger(path) as ledger:
        assert ledger.record(ENDS[0]) == ENDS[0]
        assert ledger.record(End("web", 1, 255, 2000.0, "unknown")) == ENDS[0]
    with Ledger(path) as ledger:
        assert ledger.record(End("web", 1, 255, 2000.0, "unknown")) == ENDS[0]
    assert len(path.read_text().splitlines()) == 1


def test_a_line_says_who_how_and_when(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.record(ENDS[0])
    assert json.loads(path.read_text()) == {
        "container": "web",
        "generation": 1,
        "code": 0,
        "at": "1970-01-01T00:16:40.250000+00:00",
        "reason": "",
    }


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 300))
def test_a_line_cut_short_costs_no_other_and_is_written_again(path: Path, cut: int) -> None:
    whole = b"".join(end.line() for end in ENDS)
    path.write_bytes(whole[: max(0, len(whole) - cut)])
    with Ledger(path) as ledger:
        for end in ENDS:
            ledger.record(end)
    assert path.read_bytes() == whole


@given(st.binary(max_size=100))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rubbish_in_the_log_costs_no_line_after_it(path: Path, rubbish: bytes) -> None:
    path.write_bytes(rubbish)
    with Ledger(path) as ledger:
        ledger.record(ENDS[1])
    with Ledger(path) as ledger:
        assert ledger.find("web", 2) == ENDS[1]


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    from dataclasses import asdict

    record = Record(generation=4, begun=12.5, settled=3, stopped=True, restarts=2)
    write_json(tmp_path / "r.json", asdict(record))
    assert read_record(tmp_path / "r.json") == record


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"generation": 1}', "5"])
def test_a_record_that_makes_no_sense_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    assert read_record(tmp_path / "r.json") is None
