from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import InvalidError, NotFoundError
from shimctl.standalone.logentries import Wanted, parse_entry, parse_json_entry, parse_since
from shimctl.standalone.logfiles import Log
from shimctl.standalone.logs import RAW, format_of, show
from tests.shimctl.host import NAMESPACE, PATIENCE, Host, _needs, eventually, host

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["_needs", "host"]
KEYS = ["log", "stream", "time"]
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "output.log"


def entry(second: int, text: str, *, stream: str = "stdout", tag: str = "F") -> str:
    return f"2026-11-24T12:00:{second:02d}.123456789Z {stream} {tag} {text}\n"


def over() -> bool:
    return True


# Entries and times


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


# Files


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


async def test_streams_times_and_cut_lines_are_put_together(
    path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    path.write_text(
        entry(1, "one ", tag="P")
        + entry(2, "err", stream="stderr")
        + entry(3, "line")
        + "half a line after a crash\n"
        + entry(4, "no end", tag="P")
    )
    await show(path, "cri", Wanted(), None)
    out, err = capfdbinary.readouterr()
    assert out == b"one line\nhalf a line after a crash\nno end"
    assert err == b"err\n"
    await show(path, "cri", Wanted(timestamps=True), None)
    out, err = capfdbinary.readouterr()
    assert out.startswith(b"2026-11-24T12:00:01.123456789Z one line\n")
    assert err == b"2026-11-24T12:00:02.123456789Z err\n"


def test_both_streams_in_one_pipe_keep_the_order_of_the_log(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    names = ["stdout", "stderr", "stderr", "stdout", "stderr", "stdout"] * 5
    path.write_text("".join(entry(n, str(n), stream=name) for n, name in enumerate(names)))
    command = [sys.executable, "-m", "shimctl", "logs", str(path)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    )
    assert done.stdout.split() == [str(n) for n in range(len(names))]


@pytest.mark.parametrize(
    ("tail", "shown"), [(0, ""), (1, "3\n"), (2, "a2\n3\n"), (9, "1\na2\n3\n")]
)
async def test_the_last_lines_count_whole_lines(
    path: Path, capfd: pytest.CaptureFixture[str], tail: int, shown: str
) -> None:
    path.write_text(entry(1, "1") + entry(2, "a", tag="P") + entry(2, "2") + entry(3, "3"))
    await show(path, "cri", Wanted(tail=tail), None)
    assert capfd.readouterr().out == shown


async def test_since_leaves_out_what_is_older(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path.write_text("".join(entry(second, str(second)) for second in range(10)))
    await show(path, "cri", Wanted(since=NOW + timedelta(seconds=8)), None)
    assert capfd.readouterr().out == "8\n9\n"


async def test_until_leaves_out_newer_lines(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path.write_text("".join(json_entry(second, f"{second}\n") for second in range(10)))
    assert format_of(path) == "json"
    wanted = Wanted(since=NOW + timedelta(seconds=3), until=NOW + timedelta(seconds=6))
    await show(path, "json", wanted, None)
    assert capfd.readouterr().out == "3\n4\n5\n"
    await show(path, "json", replace(wanted, tail=1), None)
    assert capfd.readouterr().out == "5\n"


async def test_following_ends_at_the_time_of_until(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path.write_text(entry(1, "1"))
    until = datetime.now(UTC) + timedelta(seconds=0.3)
    with trio.fail_after(PATIENCE):
        await show(path, "cri", Wanted(until=until), lambda: False)
    assert capfd.readouterr().out == "1\n"
    assert datetime.now(UTC) > until


LOCKED = """
import fcntl, sys
with open(sys.argv[1], "a") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("locked", flush=True)
    sys.stdin.read()
"""


async def test_a_line_that_the_logger_writes_a_second_after_the_exit_is_followed(
    path: Path, capfd: pytest.CaptureFixture[str], autojump_clock: trio.testing.MockClock
) -> None:
    path.write_text(entry(1, "1"))
    with subprocess.Popen(  # noqa: ASYNC220 - it has the lock, as the logger of a container
        [sys.executable, "-c", LOCKED, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as logger:
        assert logger.stdout
        assert logger.stdout.readline() == b"locked\n"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(show, path, "cri", Wanted(), over)
            await trio.sleep(1)
            with open(path, "a") as file:
                file.write(entry(2, "last"))
        logger.communicate()
    assert capfd.readouterr().out == "1\nlast\n"


async def test_following_ends_after_the_last_word(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path.write_text(entry(1, "1"))
    ended = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(show, path, "cri", Wanted(), lambda: ended)
        await trio.testing.wait_all_tasks_blocked()
        with open(path, "a") as file:
            file.write(entry(2, "2"))
        ended = True
    assert capfd.readouterr().out == "1\n2\n"


async def test_a_file_as_it_is_has_no_times(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NotFoundError, match="no log"):
        await show(path, RAW, Wanted(), None)
    path.write_text("1\n2\n3")
    with pytest.raises(InvalidError, match="has no times"):
        await show(path, RAW, Wanted(since=NOW), None)
    await show(path, RAW, Wanted(tail=2), over)
    assert capfd.readouterr().out == "2\n3"
    assert format_of(path) == RAW


# With containers


def logs(host: Host, *argv: str) -> subprocess.CompletedProcess[str]:
    return host.shimctl("logs", "--namespace", NAMESPACE, *argv)


@pytest.mark.e2e
def test_everything_that_runs_detached_has_a_log(host: Host) -> None:
    bundle = host.bundle("sh", "-c", "echo out; echo err >&2; echo -n end; exit 3")
    assert host.run("-d", "--id", "logged", bundle).returncode == 0
    done = logs(host, "-f", "logged")
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\nend", "err\n")
    assert host.shimctl("wait", "-n", NAMESPACE, "logged").returncode == 3
    assert logs(host, "--tail", "1", "logged").stdout == "end"
    assert logs(host, "--since", "1h", "logged").stdout == "out\nend"
    assert logs(host, "--since", "2099-01-01T00:00:00Z", "logged").stdout == ""
    assert logs(host, "-t", "logged").stdout.count("Z ") == 2
    assert logs(host, "--tail", "x", "logged").returncode == 125
    file = host.state / NAMESPACE / "logged" / "output.log"
    assert logs(host, str(file)).stdout == "out\nend"
    assert logs(host, str(file) + ".none").returncode == 125


@pytest.mark.e2e
def test_a_terminal_has_a_log_and_a_size_though_nobody_is_at_it(host: Host) -> None:
    host.run("-d", "-t", "--id", "tty", host.bundle("sh", "-c", "stty size; echo err >&2"))
    done = logs(host, "-f", "tty")
    assert (done.stdout, done.stderr) == ("24 80\nerr\n", "")


@pytest.mark.e2e
def test_a_log_of_its_own_is_shown_as_it_is(host: Host) -> None:
    log = host.root / "own.log"
    host.run(
        "-d", "--log", log, "--id", "own", host.bundle("sh", "-c", "echo a; echo b; echo -n c")
    )
    assert logs(host, "-f", "own").stdout == "a\nb\nc"
    assert logs(host, "--tail", "2", "own").stdout == "b\nc"
    refused = logs(host, "--since", "1m", "own")
    assert (refused.returncode, refused.stderr.count("\n")) == (125, 1)
    assert "has no times" in refused.stderr


@pytest.mark.e2e
@pytest.mark.parametrize("name", [b"a%41#b?c", b"caf\xe9 \xc3\xbc"], ids=ascii)
def test_a_log_of_its_own_may_have_any_name(host: Host, name: bytes) -> None:
    log = host.root / os.fsdecode(name)
    host.run("-d", "--log", log, "--id", "own", host.bundle("echo", "said"))
    assert logs(host, "-f", "own").stdout == "said\n"
    assert log.read_text() == "said\n"


@pytest.mark.e2e
def test_a_log_is_followed_while_it_is_written_and_across_its_limit(host: Host) -> None:
    script = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; done; sleep 1; echo last"
    host.run("-d", "--log-limit", "20KiB", "--id", "long", host.bundle("sh", "-c", script))
    shown = logs(host, "-f", "long").stdout.splitlines()
    assert shown[-1] == "last"
    numbers = [int(line.split()[1]) for line in shown[:-1]]
    # A late reader finds two files, and misses no line from then on.
    assert numbers == list(range(3001 - len(numbers), 3001))
    work = host.state / NAMESPACE / "long"
    assert sum(file.stat().st_size for file in work.glob("output.log*")) <= 40 * 1024


@pytest.mark.e2e
def test_a_log_outlives_its_shim(host: Host) -> None:
    host.run("-d", "--id", "dead", host.bundle("sh", "-c", "echo here; sleep 100"))
    eventually(lambda: logs(host, "dead").stdout == "here\n", lambda: logs(host, "dead"))
    [row] = host.json("ps", "-a", "-n", NAMESPACE)
    os.kill(row["shim_pid"], 9)
    done = logs(host, "-f", "dead")
    assert (done.returncode, done.stdout) == (0, "here\n")


@pytest.mark.e2e
def test_without_a_log_one_line_says_where_the_output_is(host: Host) -> None:
    host.run("-d", "-i", "--id", "piped", host.bundle("cat"))
    done = logs(host, "piped")
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.count("\n") == 1
    assert "piped has no log" in done.stderr
    assert "`shimctl attach piped`" in done.stderr


@pytest.mark.e2e
def test_following_can_be_interrupted(host: Host) -> None:
    host.run("-d", "--id", "on", host.bundle("sh", "-c", "echo up; sleep 100"))
    command = host.command("logs", "-f", "--namespace", NAMESPACE, "on")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as follower:
        assert follower.stdout
        assert follower.stdout.readline() == b"up\n"
        follower.send_signal(2)
        assert follower.communicate(timeout=PATIENCE) == (b"", b"")
    assert follower.returncode == 130
