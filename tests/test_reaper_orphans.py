"""The reaper and orphans: their adoption, their exits, and the kill of one that a runtime left."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

import pytest
import trio

from shim.errors import NotFoundError
from shim.reaper import open_reaper
from tests.test_reaper import state_of

if TYPE_CHECKING:
    from pathlib import Path

# A runtime as the reaper sees it: it forks, writes the pid of its child and
# leaves.  The child goes when its parent has gone, with the code it was given.
DETACH = """
my ($code, $file) = @ARGV;
my $parent = $$;
my $pid = fork;
if (!$pid) { select(undef, undef, undef, 0.001) while $code ne "never" ? getppid == $parent : 1;
             exit $code }
open(F, ">$file"); print F $pid; close(F);
"""
# The same, but the child is dead for certain when the "runtime" returns.
STILLBORN = """
my ($code, $file) = @ARGV;
my $pid = fork;
exit $code if !$pid;
do { open(S, "/proc/$pid/stat"); $_ = <S>; close(S) } until /\\) Z/;
open(F, ">$file"); print F $pid; close(F);
"""


@pytest.mark.usefixtures("subreaper")
async def test_an_orphan_is_adopted_with_its_exit_code(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    async with open_reaper() as reaper:
        with reaper.runtime_running():
            await reaper.spawn(["perl", "-e", DETACH, "3", str(file)]).wait()
            child = await reaper.adopt(int(file.read_text()))
        assert (await child.wait()).exit_status == 3


@pytest.mark.usefixtures("subreaper")
async def test_an_orphan_that_died_before_it_was_known_is_not_lost(tmp_path: Path) -> None:
    lost: list[object] = []
    async with open_reaper() as reaper:
        for number in range(200):
            file = tmp_path / f"pid{number}"
            with reaper.runtime_running():
                await reaper.spawn(["perl", "-e", STILLBORN, str(number), str(file)]).wait()
                child = await reaper.adopt(int(file.read_text()))
            exit_ = await child.wait()
            if exit_.exit_status != number:
                lost.append((number, exit_))
    assert lost == []


@pytest.mark.usefixtures("subreaper")
async def test_unknown_zombies_keep_their_pids_during_a_birth_and_go_after(
    tmp_path: Path,
) -> None:
    file = tmp_path / "pid"
    async with open_reaper() as reaper:
        with reaper.runtime_running():
            await reaper.spawn(["perl", "-e", STILLBORN, "3", str(file)]).wait()
            pid = int(file.read_text())
            assert state_of(pid) == "Z"
            # Another child's exit makes the reaper look around.
            await reaper.spawn(["true"]).wait()
            assert state_of(pid) == "Z"
        assert state_of(pid) == ""


@pytest.mark.usefixtures("subreaper")
async def test_orphans_are_reaped_though_another_thread_takes_sigchld(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    thread = threading.Thread(target=os.read, args=(reader, 1))
    thread.start()  # before the reaper, so SIGCHLD is not blocked in it
    file = tmp_path / "pid"
    try:
        async with open_reaper() as reaper:
            for _ in range(50):
                end, ours = os.pipe()
                script = f"cat <&3 & echo $! > {file}"
                await reaper.spawn(["sh", "-c", script], fds={3: end}).wait()
                os.close(end)
                os.close(ours)  # the orphan ends, and no other child does
                with trio.fail_after(10):
                    while state_of(int(file.read_text())):
                        await trio.sleep(0.001)
    finally:
        os.close(writer)
        thread.join()
        os.close(reader)


@pytest.mark.usefixtures("subreaper")
async def test_a_process_whose_parent_is_about_to_end_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    script = f"(sleep 60 & echo $! > {file}; sleep 0.3) & until [ -s {file} ]; do :; done"
    async with open_reaper() as reaper:
        with reaper.runtime_running():
            await reaper.spawn(["sh", "-c", script]).wait()
            child = await reaper.adopt(int(file.read_text()))
        child.signal(signal.SIGKILL)
        with trio.fail_after(10):
            assert (await child.wait()).exit_status == 137


@pytest.mark.usefixtures("subreaper")
async def test_a_process_that_is_not_ours_is_not_adopted(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    async with open_reaper() as reaper:
        known = reaper.spawn(["sleep", "60"])
        # The parent of this one stays.
        other = reaper.spawn(["sh", "-c", f"sleep 60 & echo $! > {file}; wait"])
        with trio.fail_after(10):
            while not (file.exists() and file.read_text()):
                await trio.sleep(0.01)
        kept = int(file.read_text())
        with reaper.runtime_running():
            for pid in (1, os.getpid(), known.pid, kept, 0, 1 << 22):
                with pytest.raises(NotFoundError, match="pid"), trio.fail_after(5):
                    await reaper.adopt(pid)
        for child in (known, other):
            assert child.exit is None
            child.signal(signal.SIGKILL)
            await child.wait()
    os.kill(kept, signal.SIGKILL)


@pytest.mark.usefixtures("subreaper")
async def test_a_stray_is_killed_only_if_it_is_ours(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    async with open_reaper() as reaper:
        with reaper.runtime_running():
            await reaper.spawn(["perl", "-e", DETACH, "never", str(file)]).wait()
            pid = int(file.read_text())
            reaper.kill_orphan(pid)
            reaper.kill_orphan(os.getppid())
            reaper.kill_orphan(0)
            with trio.fail_after(10):
                while state_of(pid) not in ("Z", ""):
                    await trio.lowlevel.checkpoint()
    assert state_of(os.getppid()) not in ("Z", "")
