"""Executables of the shim run as a manager runs them, with a fork server of the test's own."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from shimctl.host import forkserver
from tests.process.rig import Rig, open_rig
from tests.process.servers import LAUNCH, ROOT, launch
from tests.shimctl import tool

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    import pytest


class Shims:
    """Starts shims for the bundles of a rig; see :func:`open_shims`."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.directory = rig.root / "f"

    def run(
        self,
        bundle: Path,
        *args: str,
        command: tuple[str, ...] = LAUNCH,
        environ: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        return launch(self.rig, bundle, *args, command=command, environ=environ)

    async def start(
        self,
        bundle: Path,
        *,
        command: tuple[str, ...] = LAUNCH,
        environ: Mapping[str, str] | None = None,
    ) -> int:
        """Start a shim; return the pid of its daemon once it serves."""
        done = self.run(bundle, "start", command=command, environ=environ)
        assert (done.returncode, done.stderr) == (0, b"")
        self.rig.address = done.stdout.decode()
        known = set(self.rig.daemons)
        await self.rig.connect()
        (daemon,) = set(self.rig.daemons) - known
        return daemon

    def shimctl(self, *args: str) -> subprocess.CompletedProcess[str]:
        return tool.shimctl(*args, cwd=ROOT)

    async def server(self) -> int:
        """Return the pid of the one fork server; it need not listen yet when a start ends."""
        with trio.fail_after(10):
            while True:
                up = [s for s in await forkserver.list_servers() if s.pid]
                if up:
                    (one,) = up
                    return one.pid
                await trio.sleep(0.02)


@asynccontextmanager
async def open_shims(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shims]:
    """Own a rig and the fork servers that come to be in it."""
    async with open_rig() as rig:
        shims = Shims(rig)
        monkeypatch.setenv("TRIO_SHIM_FORKSERVER", "on")
        monkeypatch.setenv("TRIO_SHIM_FORKSERVER_DIR", str(shims.directory))
        try:
            yield shims
        finally:
            await forkserver.stop_servers()
