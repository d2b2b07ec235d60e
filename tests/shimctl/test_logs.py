"""What `shimctl logs` prints: streams, times, tails and following; of containers, too."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import trio

from shim.errors import InvalidError, NotFoundError
from shimctl.standalone.logentries import Wanted
from shimctl.standalone.logs import RAW, format_of, show
from tests.shimctl.host import NAMESPACE, PATIENCE, Host, _needs, eventually, host
from tests.shimctl.test_logentries import NOW, entry, json_entry
from tests.shimctl.test_logfiles import path

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["_needs", "host", "path"]


def over() -> bool:
    return True


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
    """The container waits for the reader: the log keeps two files, so a slow one misses some."""
    steps, lines = 6, 300  # 14 KiB a step
    script = f"""
        i=0
        while [ $i -lt {steps * lines} ]; do
            i=$((i+1)); echo line $i
            [ $((i % {lines})) != 0 ] || until [ -e /read.$i ]; do usleep 10000; done
        done
        echo last"""
    bundle = host.bundle("sh", "-c", script)
    (bundle / "rootfs/bin/usleep").symlink_to("busybox")
    host.run("-d", "--log-limit", "20KiB", "--id", "long", bundle)
    command = host.command("logs", "-f", "--namespace", NAMESPACE, "long")
    command = ["timeout", str(4 * PATIENCE), *command]  # a missing line would be waited for
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout
        for number in range(1, steps * lines + 1):
            assert follower.stdout.readline() == f"line {number}\n"
            if number % lines == 0:
                (bundle / f"rootfs/read.{number}").touch()
        assert follower.communicate(timeout=PATIENCE)[0] == "last\n"
        assert follower.returncode == 0
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
