"""Runtime commands are found in each moment of their life."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shim.runc.orphans import Orphans, is_running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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


def test_a_command_is_found_while_it_is_in_execve(tmp_path: Path) -> None:
    root = str(tmp_path / "state")
    with executing(tmp_path / "state"):
        assert all(is_running(root, "c1") for _ in range(LOOKS))
    assert not is_running(root, "c1")


async def test_an_orphan_is_waited_for_while_it_is_in_execve(tmp_path: Path) -> None:
    with executing(tmp_path / "state") as process:
        await Orphans(str(tmp_path / "state"), "c1", os.getpid()).wait(SECONDS)
        assert process.wait(5) == -signal.SIGKILL  # past its limit, and not before
