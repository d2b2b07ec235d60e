"""The reaper against the real kernel: no exit lost, none invented, none credited wrongly."""

from __future__ import annotations

import os
import signal
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


async def test_leaving_the_reaper_kills_nobody_and_leaks_no_fd() -> None:
    before = set(os.listdir("/proc/self/fd"))
    async with open_reaper() as reaper:
        child = reaper.spawn(["sleep", "60"])
    assert set(os.listdir("/proc/self/fd")) == before
    assert state_of(child.pid) in ("S", "R", "D")
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)


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
