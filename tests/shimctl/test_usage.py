"""Usage: rates out of two looks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shimctl.cli.screen import cut
from shimctl.discover import Found
from shimctl.host.usage import ProcessUsage, Sample, Usage, ordered, ordered_processes, usage_of
from shimctl.values import Stats, Status

FOUND = Found("default", "redis", "unix:///s", status=Status.RUNNING, pid=7, shim_pid=6)


def stats(cpu: float = 1.0, memory: int = 100, limit: int | None = None, **io: int) -> Stats:
    return Stats(2, cpu, 0.0, 0.0, memory, limit, 3, None, **io)


def test_cpu_is_in_percent_of_one_cpu_over_the_time_between_two_looks() -> None:
    usage = usage_of(FOUND, Sample(12.0, stats(cpu=4.0)), Sample(10.0, stats(cpu=1.0)))
    assert (usage.cpu_percent, usage.cpu_seconds) == (150.0, 4.0)


def test_the_first_look_has_no_rates() -> None:
    usage = usage_of(FOUND, Sample(12.0, stats(io_read=5, io_written=6)), None)
    assert (usage.cpu_percent, usage.io_read_rate, usage.io_written_rate) == (None, None, None)


def test_no_time_between_two_looks_makes_no_rate() -> None:
    assert usage_of(FOUND, Sample(1.0, stats()), Sample(1.0, stats())).cpu_percent is None


def test_a_counter_that_went_back_makes_no_rate() -> None:
    usage = usage_of(FOUND, Sample(2.0, stats(cpu=1.0)), Sample(1.0, stats(cpu=9.0)))
    assert usage.cpu_percent is None


def test_what_is_read_and_written_is_per_second() -> None:
    before = Sample(1.0, stats(io_read=1000, io_written=0))
    usage = usage_of(FOUND, Sample(3.0, stats(io_read=3000, io_written=500)), before)
    assert (usage.io_read_rate, usage.io_written_rate) == (1000.0, 250.0)


def test_a_disk_that_is_used_for_the_first_time_counts_from_zero() -> None:
    usage = usage_of(FOUND, Sample(2.0, stats(io_read=100)), Sample(1.0, stats()))
    assert usage.io_read_rate == 100.0


@pytest.mark.parametrize(
    ("limit", "total", "percent"),
    [(200, 1000, 50.0), (None, 1000, 10.0), (None, None, None), (2000, 1000, 10.0)],
)
def test_memory_is_in_percent_of_what_it_can_get(
    limit: int | None, total: int | None, percent: float | None
) -> None:
    usage = usage_of(FOUND, Sample(1.0, stats(limit=limit)), None, memory_total=total)
    assert usage.memory_percent == percent


def of(name: str, **figures: Any) -> Usage:
    return Usage("default", name, Status.RUNNING, 1, 2, **figures)


@pytest.mark.parametrize(
    ("key", "names"),
    [("cpu", "cab"), ("memory", "bca"), ("pids", "abc"), ("io", "bca"), ("id", "abc")],
)
def test_the_largest_comes_first_and_names_decide_the_rest(key: str, names: str) -> None:
    usages = [
        of("b", memory=9, io_written_rate=9.0),
        of("a", cpu_percent=1.0),
        of("c", cpu_percent=2.0, memory=5, io_read_rate=1.0),
    ]
    assert "".join(usage.id for usage in ordered(usages, key)) == names


def test_processes_are_sorted_likewise_and_by_pid_else() -> None:
    processes = [
        ProcessUsage(pid, "", 1, "root", "sleeping", threads, cpu, 0.0, memory, "sh")
        for pid, threads, cpu, memory in ((3, 1, 5.0, 10), (1, 2, None, 30), (2, 9, 1.0, 20))
    ]
    assert [one.pid for one in ordered_processes(processes, "cpu")] == [3, 2, 1]
    assert [one.pid for one in ordered_processes(processes, "memory")] == [1, 2, 3]
    assert [one.pid for one in ordered_processes(processes, "pids")] == [2, 1, 3]
    assert [one.pid for one in ordered_processes(processes, "io")] == [1, 2, 3]


@given(st.text(st.characters(blacklist_characters="\x1b"), max_size=40), st.integers(1, 50))
def test_a_line_is_cut_to_the_width_of_the_terminal(line: str, width: int) -> None:
    assert cut(line, width) == line[:width]


def test_colours_take_no_room_and_end_where_a_line_is_cut() -> None:
    line = "ab\x1b[32mcd\x1b[0mef"
    assert cut(line, 6) == line
    assert cut(line, 3) == "ab\x1b[32mc\x1b[0m"
