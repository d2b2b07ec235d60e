"""The reaper against the real kernel: no exit lost, none invented, none credited wrongly."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio
import trio.testing

from shim.errors import NotFoundError
from shim.exit import UNKNOWN_STATUS
from shim.reaper import open_reaper

SH = "/bin/sh"


async def test_an_exit_code_is_the_processs_own() -> None:
    async with open_reaper() as reaper:
        exit_ = await reaper.spawn([SH, "-c", "exit 7"]).wait()
    assert (exit_.exit_status, exit_.reason) == (7, "")


async def test_a_killed_process_exits_with_128_plus_the_signal() -> None:
    async with open_reaper() as reaper:
        child = reaper.spawn(["sleep", "60"])
        child.signal(signal.SIGTERM)
        exit_ = await child.wait()
    assert exit_.exit_status == 128 + signal.SIGTERM


async def test_an_exit_is_known_though_the_caller_ignored_sigchld() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # as a manager may leave it
    try:
        async with open_reaper() as reaper:
            exit_ = await reaper.spawn([SH, "-c", "exit 7"]).wait()
        assert (exit_.exit_status, exit_.reason) == (7, "")
        assert signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGCHLD, before)


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


async def test_the_time_of_an_exit_is_utc_in_nanoseconds() -> None:
    before = time.time_ns()
    async with open_reaper() as reaper:
        exit_ = await reaper.spawn(["true"]).wait()
    assert before <= exit_.exited_at <= time.time_ns()


async def test_three_hundred_concurrent_exits_are_each_told_right() -> None:
    wrong: list[object] = []

    async def one(number: int) -> None:
        exit_ = await reaper.spawn([SH, "-c", f"exit {number % 256}"]).wait()
        if exit_.exit_status != number % 256:
            wrong.append((number, exit_))

    async with open_reaper() as reaper, trio.open_nursery() as nursery:
        for number in range(300):
            nursery.start_soon(one, number)
    assert wrong == []


async def test_signalling_the_dead_is_not_found() -> None:
    async with open_reaper() as reaper:
        child = reaper.spawn(["true"])
        await child.wait()
        with pytest.raises(NotFoundError, match="already finished"):
            child.signal(0)


async def test_signalling_a_process_that_has_been_waited_for_elsewhere_is_not_found() -> None:
    async with open_reaper() as reaper:
        child = reaper.spawn(["sleep", "60"])
        os.kill(child.pid, signal.SIGKILL)
        os.waitpid(child.pid, 0)  # the reaper has had no time to see it
        assert child.exit is None
        with pytest.raises(NotFoundError, match="process already finished: not found"):
            child.signal(signal.SIGTERM)
        await child.wait()


async def test_signal_0_only_asks() -> None:
    async with open_reaper() as reaper:
        child = reaper.spawn(["sleep", "60"])
        child.signal(0)
        assert child.exit is None
        child.signal(signal.SIGKILL)
        await child.wait()


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


def keeps_status() -> bool:
    """Whether the kernel keeps the exit status of a reaped process: Linux 6.15."""
    return tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 15)


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -9 $$", 137)])
async def test_the_kernel_has_the_status_of_a_process_that_another_reaped(
    script: str, status: int
) -> None:
    async with open_reaper() as reaper:
        child = reaper.spawn(["sh", "-c", script])
        os.waitpid(child.pid, 0)
        exit_ = await child.wait()
    if not keeps_status():
        pytest.skip("this machine's kernel keeps no exit status of a reaped process")
    assert (exit_.exit_status, exit_.reason) == (status, "")


async def test_a_status_that_neither_we_nor_the_kernel_has_is_reported_as_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shim.reaper.reaped_status", lambda pidfd: None)
    async with open_reaper() as reaper:
        child = reaper.spawn(["sleep", "60"])
        os.kill(child.pid, signal.SIGKILL)
        os.waitpid(child.pid, 0)
        exit_ = await child.wait()
    assert exit_.exit_status == UNKNOWN_STATUS
    assert "another process" in exit_.reason


async def test_a_held_process_stays_a_zombie_until_it_is_released() -> None:
    async with open_reaper() as reaper:
        child = reaper.spawn(["sh", "-c", "exit 7"])
        child.hold()
        assert (await child.wait()).exit_status == 7
        with pytest.raises(NotFoundError):
            await reaper.adopt(child.pid)
        reaper.kill_orphan(child.pid)
        await trio.testing.wait_all_tasks_blocked()
        assert _state_of(child.pid) == "Z"
        assert (await reaper.spawn(["sh", "-c", "exit 8"]).wait()).exit_status == 8
        child.release()
        child.release()
        with pytest.raises(FileNotFoundError):
            _state_of(child.pid)


async def test_orphans_are_reaped_after_a_held_process() -> None:
    async with open_reaper() as reaper:
        child = reaper.spawn(["sh", "-c", "exit 7"])
        child.hold()
        await child.wait()
        orphan = os.fork()
        if not orphan:
            os._exit(0)
        os.waitid(os.P_PID, orphan, os.WEXITED | os.WNOWAIT)
        await trio.testing.wait_all_tasks_blocked()
        child.release()
        with pytest.raises(FileNotFoundError):
            _state_of(orphan)


async def test_a_process_that_is_released_before_it_ends_is_reaped_as_any_other() -> None:
    async with open_reaper() as reaper:
        child = reaper.spawn(["sleep", "60"])
        child.hold()
        child.release()
        child.signal(signal.SIGKILL)
        assert (await child.wait()).exit_status == 137
        with pytest.raises(FileNotFoundError):
            _state_of(child.pid)


def _state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


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


async def test_leaving_the_reaper_kills_nobody_and_leaks_no_fd() -> None:
    before = set(os.listdir("/proc/self/fd"))
    async with open_reaper() as reaper:
        child = reaper.spawn(["sleep", "60"])
    assert set(os.listdir("/proc/self/fd")) == before
    assert state_of(child.pid) in ("S", "R", "D")
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)


def _is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:  # the directory that was just read
        return False


def state_of(pid: int) -> str:
    """The letter in /proc/pid/stat, or "" when the process is gone."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


async def test_a_process_that_was_made_to_have_ended_is_waited_for() -> None:
    user_namespace = 0x10000000  # CLONE_NEWUSER
    async with open_reaper() as reaper:
        try:
            with reaper.ended(user_namespace) as pid:
                ours = os.stat("/proc/self/ns/user").st_ino  # noqa: PTH116 - a link of the kernel's
                assert os.stat(f"/proc/{pid}/ns/user").st_ino != ours  # noqa: PTH116
        except PermissionError:
            pytest.skip("this machine forbids user namespaces")
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_a_process_is_ending_once_it_was_killed_and_not_before() -> None:
    async with open_reaper() as reaper:
        child = reaper.spawn(["sleep", "60"])
        assert not child.is_ending()
        os.kill(child.pid, signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert child.exit is None  # the reaper has had no time to see it
        assert child.is_ending()
        await child.wait()
        assert child.is_ending()
