"""Stdio with real pipes, fifos and terminals; the tests play the process and the manager."""

from __future__ import annotations

import gc
import os
import tempfile
from contextlib import AbstractContextManager, aclosing, asynccontextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from shim.linux import fifos
from shim.reaper import Reaper, open_reaper
from shim.stdio import overflow, streams
from shim.stdio.opening import open_stdio
from shim.stdio.streams import Stdio, StdioSpec
from tests.e2e.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from shim.linux.fifos import Fd

LIMIT = 60  # s to read an output to its end, or a part of it


def open_fds() -> dict[str, str]:
    """Return our fds and their targets."""
    gc.collect()
    fds = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            fds[name] = str(Path(f"/proc/self/fd/{name}").readlink())
        except FileNotFoundError:  # the listing's own
            continue
    # The reaper's pidfds come and go with the processes.
    return {name: target for name, target in fds.items() if "pidfd" not in target}


@pytest.fixture
async def reaper() -> AsyncIterator[Reaper]:
    async with open_reaper() as reaper:
        yield reaper


class Rig:
    """Fifos for a manager, and the stdio of processes that must not leak."""

    def __init__(self, reaper: Reaper, directory: Path, runtime_directory: Path) -> None:
        self.reaper = reaper
        self.directory = directory
        self.runtime_directory = runtime_directory
        for name in ("in", "out", "err"):
            os.mkfifo(self.path(name))

    def path(self, name: str) -> str:
        return str(self.directory / name)

    @asynccontextmanager
    async def open(
        self, stdin: str = "", stdout: str = "", stderr: str = "", **options: Any
    ) -> AsyncIterator[Stdio]:
        terminal = options.pop("terminal", False)
        spec = StdioSpec(stdin, stdout, stderr, terminal)
        before = open_fds()
        error: BaseException | None = None
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = deadline = trio.current_time() + 30 * PATIENCE
            try:
                async with aclosing(await self._open(nursery, spec, options)) as stdio:
                    yield stdio
                    await stdio.aclose()  # twice, which must not matter
            except BaseException as exc:
                error = exc
            if not nursery.cancel_scope.cancel_called:
                await trio.testing.wait_all_tasks_blocked()
            assert not nursery.child_tasks, "a relay is left"
            nursery.cancel_scope.cancel()
        assert trio.current_time() < deadline, "it hung"
        if error is not None:
            raise error
        assert open_fds().items() <= before.items()
        assert not list(self.runtime_directory.iterdir())

    async def _open(
        self, nursery: trio.Nursery, spec: StdioSpec, options: dict[str, Any]
    ) -> Stdio:
        before = open_fds()
        try:
            return await open_stdio(
                spec,
                nursery=nursery,
                reaper=self.reaper,
                container_id="redis",
                namespace="test",
                **options,
            )
        except BaseException:
            assert open_fds().items() <= before.items()
            raise

    async def run(self, stdio: Stdio, script: str) -> Callable[[], Coroutine[Any, Any, Any]]:
        """Start a shell script as the process; return what waits for its end."""
        fds = dict(enumerate(stdio.child_fds))
        child = self.reaper.spawn(["sh", "-c", script], fds=fds)
        await stdio.started()
        return child.wait


@pytest.fixture
def rig(reaper: Reaper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    # Short, for sockets; our own, for other shims of the machine have theirs in /run.
    with tempfile.TemporaryDirectory(prefix="tst") as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        yield Rig(reaper, tmp_path, Path(runtime))


async def read_some(fd: Fd, size: int = 65536) -> bytes:
    """Wait for bytes without a limit and read once; empty at the end."""
    while True:
        await trio.lowlevel.wait_readable(fd.number)
        try:
            return os.read(fd.number, size)
        except BlockingIOError:
            continue


def within_limit() -> AbstractContextManager[object]:
    """Bound the block to ``LIMIT`` seconds; with a clock that jumps there is no bound."""
    if isinstance(trio.lowlevel.current_clock(), trio.testing.MockClock):
        return nullcontext()
    return trio.fail_after(LIMIT * PATIENCE)


async def read_until(fd: Fd, size: int) -> bytes:
    """Read exactly ``size`` bytes."""
    data = b""
    with within_limit():
        while len(data) < size:
            chunk = await read_some(fd, size - len(data))
            assert chunk, f"ended after {data!r}"
            data += chunk
    return data


async def read_all(fd: Fd) -> bytes:
    """Read to the end, and close."""
    data = bytearray()
    with within_limit():
        while chunk := await read_some(fd):
            data += chunk
    fd.close()
    return bytes(data)


async def write_all(fd: Fd, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        await trio.lowlevel.wait_writable(fd.number)
        try:
            rest = rest[os.write(fd.number, rest[: 1 << 16]) :]
        except BlockingIOError:
            continue


def reader(path: str) -> Fd:
    return fifos.open_reader(path)


def writer(path: str) -> Fd:
    return fifos.open_writer(path)


class LogLines:
    """The new lines of a log that contain some words, at each call."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def __call__(self, words: str) -> list[str]:
        return [line for line in self._capfd.readouterr().err.splitlines() if words in line]


@pytest.fixture
def short_wait(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat a reader as away after 0.1 s, except in tests of a slow reader."""
    if "slow" not in request.node.name:
        monkeypatch.setattr(overflow, "AWAY_AFTER", 0.1)


@pytest.fixture
def patient_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not give up a reader that a busy machine keeps from reading for some seconds."""
    monkeypatch.setattr(streams, "_IDLE_READER", 5.0 * PATIENCE)
    monkeypatch.setattr(streams, "_READ_WAIT", 20.0 * PATIENCE)
    monkeypatch.setattr(streams, "_STORED_READ_WAIT", 20.0 * PATIENCE)


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> LogLines:
    """Return the lines of the shim's log, which goes to standard error here."""
    return LogLines(capfd)
