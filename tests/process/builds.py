"""Builds of this project beside the one under test, with other versions."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from shim.version import VERSION
from tests import warm
from tests.e2e.waiting import PATIENCE

if TYPE_CHECKING:
    import subprocess
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
            shutil.copytree(_copied() / package, root / package, copy_function=os.link)
        build = cls(root, version)
        build.edit("shim/version.py", lambda text: text.replace(f'"{VERSION}"', f'"{version}"'))
        return build

    def edit(self, name: str, change: Callable[[str], str]) -> None:
        """Change a file; the change must have an effect."""
        path = self.root / name
        before = path.read_text()
        assert change(before) != before
        path.unlink()  # other builds have the file, too
        path.write_text(change(before))

    async def shimctl(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run its shimctl."""
        return await self._run("shimctl", *args)

    async def upgrade(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run its ``shimctl upgrade`` when it has a fork server, as after other upgrades."""
        await self.server()
        return await self.shimctl("upgrade", *args)

    async def server(self) -> str:
        """Start a fork server of it for the rig's daemons; return its socket.

        It imports only modules of the build; those of other packages are imported already.
        """
        done = await self._run("tests.newserver")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    async def _run(self, module: str, *args: str) -> subprocess.CompletedProcess[str]:
        environ = {**os.environ, "PYTHONPATH": str(self.root)}
        package = "shimctl" if self.root == ROOT else warm.DEPENDENCIES
        call = partial(warm.run, module, args, cwd=self.root, env=environ, package=package)
        return await trio.to_thread.run_sync(partial(call, timeout=_TIMEOUT))


@cache
def _copied() -> Path:
    """Return a copy of the packages that builds have links to, since a copy takes 70 ms."""
    directory = tempfile.TemporaryDirectory(dir="/run")
    atexit.register(directory.cleanup)
    for package in ("shim", "shimctl"):
        shutil.copytree(ROOT / package, Path(directory.name, package))
    return Path(directory.name)


CURRENT = Build(ROOT, VERSION)
NEXT = "9.9.9"  # the version of a build that follows
