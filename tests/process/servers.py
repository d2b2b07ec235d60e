"""The fork server of one test, and the parents of processes."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from tests import warm
from tests.e2e.waiting import PATIENCE
from tests.process.rig import NAMESPACE, Rig

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pytest

ROOT = Path(__file__).parents[2]
# As an entry point calls it; -m would put the working directory first.
LAUNCH = (
    sys.executable,
    "-c",
    "import sys; from shim.start.launcher import main; sys.exit(main())",
)


def launch(
    rig: Rig,
    bundle: Path,
    *args: str,
    command: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    before: Any = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run the launcher as a manager does; ``before`` runs in its process first.

    Without ``command``, ``before`` and a PYTHONPATH it has been imported already, and so has the
    fork server that it may become (tests/warm.py).
    """
    flags = ["-namespace", NAMESPACE, "-address", str(rig.root / "manager")]
    argv = [*flags, "-id", bundle.name, *args]
    limit = 30 * PATIENCE
    values = {**os.environ, "PYTHONPATH": str(ROOT), "TTRPC_ADDRESS": "", **(environ or {})}
    if command is None and before is None and values["PYTHONPATH"] == str(ROOT):
        return warm.run_bytes("shim", argv, stdin=stdin, cwd=bundle, env=values, timeout=limit)
    return subprocess.run(
        [*(command or LAUNCH), *argv],
        cwd=bundle,
        input=stdin,
        capture_output=True,
        timeout=limit,
        check=False,
        env=values,
        preexec_fn=before,
    )


async def open_launcher(bundle: Path, manager: Path) -> trio.Process:
    """Open the launcher of a start; its stdout is a pipe."""
    flags = ["-namespace", NAMESPACE, "-address", str(manager)]
    return await trio.lowlevel.open_process(
        [*LAUNCH, *flags, "-id", bundle.name, "start"],
        cwd=bundle,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TTRPC_ADDRESS": ""},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )


def take_attributes() -> None:
    """Give this process attributes that no daemon has by default."""
    os.umask(0o027)
    os.nice(3)
    os.sched_setaffinity(0, {0})
    resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 2000))


class Server:
    """The fork server of one test, in a directory of the test."""

    def __init__(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rig = rig
        self.directory = rig.root / "f"
        monkeypatch.setenv("TRIO_SHIM_FORKSERVER", "on")
        monkeypatch.setenv("TRIO_SHIM_FORKSERVER_DIR", str(self.directory))

    @property
    def sockets(self) -> list[Path]:
        return [path for path in self.directory.glob("*") if not path.name.startswith(".")]

    def launch(
        self,
        bundle: Path,
        *args: str,
        before: Any = None,
        command: Sequence[str] | None = None,
        stdin: bytes = b"",
        **environ: str,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the launcher as a manager does."""
        return launch(
            self.rig, bundle, *args, command=command, environ=environ, stdin=stdin, before=before
        )

    async def start(self, bundle: Path, *args: str, **kinds: Any) -> int:
        """Start a shim; return the pid of its daemon."""
        done = self.launch(bundle, *args, "start", **kinds)
        assert done.returncode == 0, done.stderr
        self.rig.address = done.stdout.decode()
        self.rig.daemons.clear()
        await self.rig.connect()
        return self.rig.daemons[0]

    async def start_all(self, bundles: Iterable[Path]) -> set[int]:
        """Start shims at once; return the pids of their daemons."""
        connecting = trio.Lock()
        self.rig.daemons.clear()

        async def start(bundle: Path) -> None:
            done = await trio.to_thread.run_sync(self.launch, bundle, "start")
            assert (done.returncode, done.stderr) == (0, b"")
            async with connecting:  # at once: without a client a daemon exits after 30 s
                self.rig.address = done.stdout.decode()
                await self.rig.connect()

        async with trio.open_nursery() as nursery:
            for bundle in bundles:
                nursery.start_soon(start, bundle)
        return set(self.rig.daemons)

    async def wait_up(self) -> int:
        """Wait until the server listens; return its pid."""
        with trio.fail_after(10 * PATIENCE):
            while True:
                state = self.ask(b"status")
                if state is not None:
                    return int(state["pid"])
                await trio.sleep(0.02)

    async def wait_servers(self, count: int) -> list[int]:
        """Wait until so many servers answer; return their pids."""
        with trio.fail_after(20 * PATIENCE):
            while True:
                states = [self.ask(b"status", path) for path in self.sockets]
                pids = [int(state["pid"]) for state in states if state is not None]
                if len(pids) >= count:
                    return pids
                await trio.sleep(0.02)

    async def wait_spare(self) -> int:
        """Wait until the server has a child that waits for a caller; return that child's pid."""
        server = await self.wait_up()
        with trio.fail_after(10 * PATIENCE):
            while True:
                for pid in children_of(server):
                    # A daemon has its own title.  Asleep, the child has warmed up and waits.
                    with suppress(FileNotFoundError, ProcessLookupError):
                        if title_of(pid) == title_of(server) and state_of(pid) == "S":
                            return pid
                await trio.sleep(0.02)

    def ask(self, message: bytes, *paths: Path) -> Any:
        """Return the reply of the first server that answers, or None."""
        for path in paths or self.sockets:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.settimeout(5)
                try:
                    sock.connect(str(path))
                except OSError:
                    continue
                try:
                    sock.send(message)
                    reply = sock.recv(4096)
                except ConnectionError:
                    continue  # the server ends
                if reply:
                    return json.loads(reply)
        return None


def parent_of(pid: int) -> int:
    text = Path(f"/proc/{pid}/stat").read_text()
    return int(text.rpartition(")")[2].split()[1])


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def title_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def daemons_of(manager: Path) -> list[str]:
    """The processes that were started for ``manager``."""
    done = subprocess.run(
        ["pgrep", "-f", str(manager)], capture_output=True, text=True, check=False
    )
    return done.stdout.split()
