"""The files of a log: whole lines, rotations, truncation, and the last lines from the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shimctl.standalone.logfiles import Log

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "output.log"


def lines_of(log: Log) -> list[bytes]:
    return list(log.lines())


def test_a_line_is_given_when_it_is_whole(path: Path) -> None:
    with Log(path, rotated=True) as log:
        assert lines_of(log) == []  # not even there yet
        path.write_bytes(b"one\ntw")
        assert lines_of(log) == [b"one"]
        with open(path, "ab") as file:
            file.write(b"o\n")
        assert lines_of(log) == [b"two"]


def test_nothing_is_lost_between_the_last_look_and_a_rotation(path: Path) -> None:
    path.write_bytes(b"1\n")
    old = path.with_name("output.log.1")
    with Log(path, rotated=True) as log:
        assert lines_of(log) == [b"1"]
        for number in range(2, 6):
            with open(path, "ab") as file:
                file.write(b"%d\n" % number)
            path.replace(old)
            path.write_bytes(b"new %d\n" % number)
            assert lines_of(log) == [b"%d" % number, b"new %d" % number]


def test_who_is_two_files_behind_goes_on_with_the_oldest_there_is(path: Path) -> None:
    path.write_bytes(b"1\n")
    old = path.with_name("output.log.1")
    with Log(path, rotated=True) as log:
        assert lines_of(log) == [b"1"]
        for number in (2, 3):
            path.replace(old)
            path.write_bytes(b"%d\n" % number)
        assert lines_of(log) == [b"2", b"3"]


def test_the_older_files_come_first(path: Path) -> None:
    for name, content in {".10": b"1\n", ".2": b"2\n", ".1": b"3\n", ".1.gz": b"no\n"}.items():
        path.with_name(f"output.log{name}").write_bytes(content)
    path.write_bytes(b"4\n")
    with Log(path, rotated=True) as log:
        assert lines_of(log) == [b"1", b"2", b"3", b"4"]


def test_a_reader_follows_through_several_rotations(path: Path) -> None:
    path.write_bytes(b"1\n")
    with Log(path, rotated=True) as log:
        assert lines_of(log) == [b"1"]
        for number in (2, 3, 4):
            for old in range(number - 1, 1, -1):
                path.with_name(f"output.log.{old - 1}").replace(f"{path}.{old}")
            path.replace(f"{path}.1")
            path.write_bytes(b"%d\n" % number)
        assert lines_of(log) == [b"2", b"3", b"4"]


def test_a_truncated_file_is_read_from_its_beginning(path: Path) -> None:
    path.write_bytes(b"long ago\n")
    with Log(path, rotated=False) as log:
        assert lines_of(log) == [b"long ago"]
        path.write_bytes(b"new\n")
        assert lines_of(log) == [b"new"]


@given(
    st.lists(st.sampled_from([b"", b"a", b"bb" * 9]), max_size=8), st.booleans(), st.integers(0, 9)
)
def test_the_last_lines_are_found_from_the_end(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], ends: bool, tail: int
) -> None:
    path = tmp_path_factory.mktemp("tail") / "log"
    text = b"\n".join(lines) + (b"\n" if ends and lines else b"")
    path.write_bytes(text)
    with Log(path, rotated=False) as log:
        log.seek_to_last(tail)
        assert b"".join(log.chunks()) == b"".join(text.splitlines(True)[-tail:] if tail else [])


def test_the_last_lines_of_a_long_file_are_found(path: Path) -> None:
    path.write_bytes(b"".join(b"%d\n" % n for n in range(200_000)))
    with Log(path, rotated=False) as log:
        log.seek_to_last(100_000)
        assert lines_of(log) == [b"%d" % n for n in range(100_000, 200_000)]
