"""Real control groups, made for one test and removed after it."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shim.cgroup.v1 import CgroupV1

if TYPE_CHECKING:
    from collections.abc import Iterator

TOP = Path("/sys/fs/cgroup")
_CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids")

Start = Callable[[str], subprocess.Popen[bytes]]


@pytest.fixture
def group() -> Iterator[CgroupV1]:
    """A v1 group that does not exist yet; it and the groups below are removed afterwards."""
    present = [name for name in _CONTROLLERS if (TOP / name / "cgroup.procs").exists()]
    if os.geteuid() != 0 or "memory" not in present:
        pytest.skip("needs root and cgroup v1")
    name = f"trio-shim-test-{secrets.token_hex(4)}"
    group = CgroupV1({c: f"{TOP}/{c}/{name}" for c in [*present, "name=systemd"]})
    group.directories["name=systemd"] = f"{TOP}/systemd/{name}"
    yield group
    wait_removed(group)


def eventually(condition: Callable[[], bool]) -> None:
    """Look until ``condition`` holds, 30 seconds at most.

    For changes by the kernel or PID 1 to processes that are not our children.
    """
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        os.sched_yield()


def wait_removed(group: CgroupV1) -> None:
    """Remove ``group``, once its processes have been reaped."""

    def removed() -> bool:
        with suppress(OSError):
            for directory in group.directories.values():
                remove_tree(directory)
        return not group.exists()

    eventually(removed)


def say_go(child: subprocess.Popen[bytes]) -> None:
    """Let a child of ``start`` run its script."""
    assert child.stdin is not None
    child.stdin.write(b"go\n")
    child.stdin.flush()


def remove_tree(directory: str) -> None:
    """Remove a group and those below it; their processes must have ended."""
    for here, _, _ in os.walk(directory, topdown=False):
        Path(here).rmdir()


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process that waits for a line, joins nothing, and runs ``script`` in sh."""
    children: list[subprocess.Popen[bytes]] = []

    def start(script: str) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            ["/bin/sh", "-c", f"read go; {script}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,
        )
        children.append(child)
        return child

    yield start
    for child in children:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
