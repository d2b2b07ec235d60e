"""Builds of this project beside the one under test, with other versions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from shim.version import VERSION
from tests import warm
from tests.e2e.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
_TIMEOUT = 120 * PATIENCE  # seconds


@dataclass(frozen=True)
class Build:
    """A build in the directory ``root``."""

    root: Path
    version: str

    @classmethod
    def copy(cls, root: Path, version: str) -> Build:
        """Copy the code under test to ``root``, with its bytecode and another version."""
        for package in ("shim", "shimctl"):
            shutil.copytree(ROOT / package, root / package)
        build = cls(root, version)
        build.edit("shim/version.py", lambda text: text.replace(f'"{VERSION}"', f'"{version}"'))
        return build

    def edit(self, name: str, change: Callable[[str], str]) -> None:
        """Change a file; the change must have an effect."""
        path = self.root / name
        before = path.read_text()
        assert change(before) != before
        path.write_text(change(before))

    async def shimctl(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run its shimctl."""
        environ = {**os.environ, "PYTHONPATH": str(self.root)}
        if self.root == ROOT:
            call = partial(warm.run, "shimctl", args, cwd=ROOT, env=environ, timeout=_TIMEOUT)
            return await trio.to_thread.run_sync(call)
        done = await trio.run_process(
            [sys.executable, "-m", "shimctl", *args],
            cwd=self.root,
            env=environ,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        return subprocess.CompletedProcess(
            args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    async def server(self) -> str:
        """Start a fork server of it for the rig's daemons; return its socket."""
        done = await self.shimctl("forkserver", "warm", "-o", "json")
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout)["socket"])


CURRENT = Build(ROOT, VERSION)
NEXT = "9.9.9"  # the version of a build that follows
