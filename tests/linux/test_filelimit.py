"""Programs and processes of a daemon with more open files than the manager's soft limit."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from shim.linux.fds import close_all_but

if TYPE_CHECKING:
    from collections.abc import Iterator

_LIMIT = resource.RLIMIT_NOFILE

# Spawns a program with standard output above the soft limit of its manager.
SPAWNING = """
import os, resource, trio
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 1000))
from shim.linux.filelimit import raise_limit
from shim.reaper import open_reaper
raise_limit()
output = os.dup2(1, 500, inheritable=False)
async def main():
    async with open_reaper() as reaper:
        exit_ = await reaper.spawn(["/bin/sh", "-c", "ulimit -Sn"], fds={1: output}).wait()
    print(exit_.exit_status, *resource.getrlimit(resource.RLIMIT_NOFILE))
trio.run(main)
"""


@contextmanager
def soft_limit(number: int) -> Iterator[None]:
    before = resource.getrlimit(_LIMIT)
    resource.setrlimit(_LIMIT, (number, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(_LIMIT, before)


def test_a_program_gets_the_managers_limit_and_an_fd_above_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SPAWNING],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("100\n0 1000 1000\n", "")


def test_a_forked_process_keeps_no_fd_above_its_soft_limit() -> None:
    high = os.dup2(0, 500, inheritable=False)
    try:
        with soft_limit(100):
            pid = os.fork()
            if not pid:
                close_all_but()
                os._exit(str(high) in os.listdir("/proc/self/fd"))
        assert os.waitpid(pid, 0)[1] == 0
    finally:
        os.close(high)
