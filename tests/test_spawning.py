"""A program that the reaper spawns: its arguments, environment, directory, fds and signals."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from shim.errors import NotFoundError
from shim.reaper import open_reaper

SH = "/bin/sh"


async def test_programs_start_with_no_signal_blocked_and_the_reaper_leaves_none_blocked() -> None:
    status = "grep -q '^SigBlk:.*0000000000000000$' /proc/self/status"
    async with open_reaper() as reaper:
        assert (await reaper.spawn([SH, "-c", status]).wait()).exit_status == 0
    assert signal.SIGCHLD not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


async def test_each_program_gets_its_own_environment() -> None:
    async with open_reaper() as reaper:
        for value in ("1", "2", "2", "1"):
            test = [SH, "-c", f'[ "$ONE" = {value} ]']
            assert (await reaper.spawn(test, env={"ONE": value}).wait()).exit_status == 0


async def test_a_missing_program_is_named() -> None:
    async with open_reaper() as reaper:
        with pytest.raises(NotFoundError, match="/nonexistent/runc"):
            reaper.spawn(["/nonexistent/runc", "create"])


async def test_a_missing_program_is_reported_in_the_words_of_go() -> None:
    async with open_reaper() as reaper:
        with pytest.raises(NotFoundError) as caught:
            reaper.spawn(["no-runc", "create"])
        assert str(caught.value).startswith(
            'exec: "no-runc": executable file not found in $PATH; '
        )
        with pytest.raises(NotFoundError) as caught:
            reaper.spawn(["/no/runc", "create"])
        assert str(caught.value).startswith("fork/exec /no/runc: no such file or directory; ")


async def test_a_program_that_cannot_be_executed_is_named(tmp_path: Path) -> None:
    program = tmp_path / "runc"
    program.write_text("#!/bin/sh\n")
    async with open_reaper() as reaper:
        with pytest.raises(PermissionError, match=str(program)):
            reaper.spawn([str(program)])
        program.write_bytes(b"\x7fELF")
        program.chmod(0o755)
        with pytest.raises(OSError, match=str(program)) as caught:
            reaper.spawn([str(program)])
        assert caught.value.errno == errno.ENOEXEC


async def test_a_nul_byte_is_refused_and_cuts_nothing_off(tmp_path: Path) -> None:
    async with open_reaper() as reaper:
        for argv, env, directory in (
            (["sh", "-c", f"touch {tmp_path}/done\0"], {}, "/"),
            (["touch", f"{tmp_path}/done"], {"A": "b\0c"}, "/"),
            (["touch", f"{tmp_path}/done"], {}, "/\0"),
        ):
            with pytest.raises(OSError, match="argument") as caught:
                reaper.spawn(argv, env=env, directory=directory)
            assert caught.value.errno == errno.EINVAL
    assert not list(tmp_path.iterdir())


async def test_a_child_runs_in_the_directory_it_is_given(tmp_path: Path) -> None:
    here = os.getcwd()  # noqa: PTH109
    gone = str(tmp_path / "gone")
    asked = {None: here, str(tmp_path): str(tmp_path), gone: "/", "/dev/null": "/"}
    async with open_reaper() as reaper:
        for directory, expected in asked.items():
            out = os.open(tmp_path / "out", os.O_CREAT | os.O_TRUNC | os.O_RDWR)
            child = reaper.spawn(["readlink", "/proc/self/cwd"], fds={1: out}, directory=directory)
            assert (await child.wait()).exit_status == 0
            assert os.pread(out, 4096, 0).decode().strip() == expected
            os.close(out)
    assert os.getcwd() == here  # noqa: PTH109


async def test_a_child_gets_the_fds_it_is_given_and_no_other(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    # The reaper does not change the signals that the test runner was started with.
    alien = {int(fd) for fd in os.listdir("/proc/self/fd") if _is_inheritable(int(fd))}
    out = os.open(tmp_path / "out", os.O_CREAT | os.O_WRONLY)
    try:
        async with open_reaper() as reaper:
            script = "import os,sys; print(sorted(map(int, os.listdir('/proc/self/fd'))))"
            child = reaper.spawn([sys.executable, "-c", script], fds={1: out, 5: theirs, 0: ours})
            assert (await child.wait()).exit_status == 0
    finally:
        for fd in (ours, theirs, out):
            os.close(fd)
    given = {0, 1, 2, 5} | alien
    directory = min(set(range(3, 1000)) - given)  # being read, it is an fd too
    assert (tmp_path / "out").read_text().strip() == str(sorted({directory} | given))


async def test_what_a_child_is_not_given_of_0_1_and_2_is_dev_null(tmp_path: Path) -> None:
    file = tmp_path / "said"
    program = (
        "import os, sys\n"
        "found = [os.readlink(f'/proc/self/fd/{number}') for number in range(3)]\n"
        "open(sys.argv[1], 'w').write(' '.join(found))\n"
    )
    async with open_reaper() as reaper:
        exit_ = await reaper.spawn([sys.executable, "-c", program, str(file)]).wait()
    assert (exit_.exit_status, file.read_text()) == (0, "/dev/null /dev/null /dev/null")


_OWN_INPUT = """
import trio
from shim.reaper import open_reaper

async def main():
    async with open_reaper() as reaper:
        await reaper.spawn(["sh", "-c", "cat <&5"], fds={5: 0, 1: 1}).wait()

trio.run(main)
"""


def test_a_child_may_be_given_our_fd_0() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _OWN_INPUT],
        input=b"from our input",
        capture_output=True,
        timeout=60,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.stdout == b"from our input"


async def test_fds_may_swap_places(tmp_path: Path) -> None:
    one = os.open(tmp_path / "one", os.O_CREAT | os.O_WRONLY)
    two = os.open(tmp_path / "two", os.O_CREAT | os.O_WRONLY)
    try:
        async with open_reaper() as reaper:
            command = f"echo first >&{two}; echo second >&{one}"
            child = reaper.spawn(["bash", "-c", command], fds={one: two, two: one})
            assert (await child.wait()).exit_status == 0
    finally:
        os.close(one)
        os.close(two)
    assert (tmp_path / "one").read_text() == "first\n"
    assert (tmp_path / "two").read_text() == "second\n"


async def test_no_signal_is_ignored_or_blocked_in_a_child(tmp_path: Path) -> None:
    # Among them 32 and 33, which the C library keeps for itself: kill -32 must end it.
    out = os.open(tmp_path / "out", os.O_CREAT | os.O_RDWR)
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        async with open_reaper() as reaper:
            child = reaper.spawn(["grep", "^Sig[BI]", "/proc/self/status"], fds={1: out})
            await child.wait()
            victim = reaper.spawn(["sleep", "60"])
            os.kill(victim.pid, 32)
            with trio.fail_after(10):
                assert (await victim.wait()).exit_status == 128 + 32
    finally:
        signal.signal(signal.SIGHUP, old)
    said = dict(line.split(":\t") for line in os.pread(out, 4096, 0).decode().split("\n")[:-1])
    os.close(out)
    assert said == {"SigBlk": "0" * 16, "SigIgn": "0" * 16}


async def test_a_child_has_default_signals_and_an_empty_mask() -> None:
    script = (
        "import signal,sys;"
        "ignored = [s for s in signal.valid_signals() if s not in (9, 19)"
        " and signal.getsignal(s) is signal.SIG_IGN];"
        # Python itself ignores these two at start-up.
        "ignored = set(ignored) - {signal.SIGPIPE, signal.SIGXFSZ};"
        "sys.exit(len(ignored) + len(signal.pthread_sigmask(0, [])))"
    )
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        async with open_reaper() as reaper:
            exit_ = await reaper.spawn([sys.executable, "-c", script]).wait()
    finally:
        signal.signal(signal.SIGHUP, old)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])
    assert exit_.exit_status == 0


# Prints whether huge pages are allowed: for its child, and for itself after that.
WITHOUT_HUGE_PAGES = """
import trio
from shim.linux import libc
from shim.reaper import open_reaper

async def main():
    async with open_reaper() as reaper:
        await reaper.spawn(["grep", "THP_enabled", "/proc/self/status"], fds={1: 1}).wait()

libc.disable_thp()
trio.run(main)
print(next(line for line in open("/proc/self/status") if line.startswith("THP_enabled")))
"""


def test_what_we_spawn_has_huge_pages_though_we_have_none() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_HUGE_PAGES], capture_output=True, text=True, check=True
    )
    said = done.stdout.split()
    if not said:
        pytest.skip("this machine's kernel does not show THP_enabled in /proc/PID/status")
    assert said == ["THP_enabled:", "1", "THP_enabled:", "0"]


def _is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:  # the directory that was just read
        return False
