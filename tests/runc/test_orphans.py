"""Runtime commands are found in each moment of their life."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from shim.runc.orphans import Orphans, is_running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("no_siblings")

# A command that executes itself over and over is in execve(2) at every tenth look.
LOOKS = 200
SECONDS = 0.5  # more than 80 looks


@contextmanager
def executing(state: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a runtime command with the directory ``state`` that executes itself over and over."""
    script = state.with_name("runc")
    script.write_text('#!/bin/sh\nexec "$0" "$@"\n')
    script.chmod(0o755)
    with subprocess.Popen([str(script), "--root", str(state), "delete", "c1"]) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_a_command_is_found_while_it_is_in_execve(tmp_path: Path) -> None:
    root = str(tmp_path / "state")
    with executing(tmp_path / "state"):
        for _ in range(LOOKS):
            assert await is_running(root, "c1")
    assert not await is_running(root, "c1")


async def test_other_tasks_run_while_a_process_stays_in_execve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays if the program is on a disk that hangs."""
    looked: list[int] = []

    def in_execve(pid: int) -> list[bytes] | None:
        looked.append(pid)
        return None if pid == 1 else []

    monkeypatch.setattr("shim.runc.orphans.command_line", in_execve)
    with trio.move_on_after(60) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(is_running, str(tmp_path), "c1")
            while looked.count(1) < 2:
                await trio.lowlevel.checkpoint()
            scope.cancel()
    assert scope.cancelled_caught


async def test_an_orphan_is_waited_for_while_it_is_in_execve(tmp_path: Path) -> None:
    with executing(tmp_path / "state") as process:
        await Orphans(str(tmp_path / "state"), "c1", os.getpid()).wait(SECONDS)
        assert process.wait(5) == -signal.SIGKILL  # past its limit, and not before


@contextmanager
def forked(*, leader: bool) -> Iterator[int]:
    """Fork a process with the command line of this one; yield its pidfd."""
    ready, written = os.pipe()
    pid = os.fork()
    if pid == 0:
        if leader:
            os.setsid()
        os.write(written, b".")
        signal.pause()
        os._exit(0)
    pidfd = os.pidfd_open(pid)
    try:
        assert os.read(ready, 1)
        yield pidfd
    finally:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitpid(pid, 0)
        for fd in (pidfd, ready, written):
            os.close(fd)


@pytest.mark.parametrize("leader", [False, True])
async def test_of_the_processes_with_its_command_line_only_another_daemon_lives(
    tmp_path: Path, leader: bool
) -> None:
    """A daemon leads a session; a process that was forked to run a command does not."""
    with forked(leader=leader) as pidfd:
        await Orphans(str(tmp_path / "state"), "c1", os.getpid()).wait(0.05)
        ended = select.select([pidfd], [], [], 0 if leader else 5)[0]
        assert bool(ended) is not leader
