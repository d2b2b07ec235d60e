"""A rig for each test, and the proof that nothing outlives it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio

from shim import names
from tests import sharedserver
from tests.e2e.waiting import PATIENCE
from tests.frozen import FreezableDisk, freezable_disk
from tests.process.builds import NEXT, Build
from tests.process.rig import Rig, open_rig
from tests.process.runtimes import Engine
from tests.process.servers import Server
from tests.process.survival import Survivor, enable, kill_server, status_of, wait_kept

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _warm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    sharedserver.use(request, monkeypatch)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with open_rig() as rig:
        yield rig


@pytest.fixture
def disk(rig: Rig) -> Iterator[FreezableDisk]:
    with freezable_disk(rig.root / "image", rig.root / "disk") as disk:
        yield disk


@pytest.fixture(params=["crun", "runsc"])
async def engine(request: pytest.FixtureRequest, rig: Rig) -> AsyncIterator[Engine]:
    """Another runtime than runc."""
    engine = Engine.open(rig, request.param)
    try:
        yield engine
    finally:
        engine.end()


@pytest.fixture
def surviving(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A fork server whose daemons are replaced when they are killed."""
    monkeypatch.setenv(names.HOST_FILE_VARIABLE, enable(server.rig))
    return server


@pytest.fixture
def survivors(
    rig: Rig, surviving: Server, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Path], Awaitable[Survivor]]]:
    """Start a daemon that is replaced when it is killed; print its log after the test.

    With SHIM_TEST_GUEST in the environment, its fork server is killed and the next one keeps it.
    """
    monkeypatch.setenv("TRIO_SHIM_DEATHS", "0")
    sharedserver.make(os.environ)
    logs = []

    async def start(bundle: Path) -> Survivor:
        logs.append(bundle / "log")
        logs[-1].touch()
        shim = Survivor(rig, await rig.start(bundle))
        if "SHIM_TEST_GUEST" in os.environ and (await status_of(shim))["survives"]:
            await kill_server(surviving, shim)
            sharedserver.make(os.environ)
            await wait_kept(shim)
        return shim

    yield start
    for log in logs:
        print(log.read_text())


@pytest.fixture
async def server(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    server = Server(rig, monkeypatch)
    yield server
    stopped = {path for path in server.sockets if server.ask(b"stop", path) is not None}
    with trio.fail_after(10 * PATIENCE):
        while any(path.exists() for path in stopped):
            await trio.sleep(0.02)
            # A killed launcher may have left a server that listens only now.
            stopped |= {path for path in server.sockets if server.ask(b"stop", path) is not None}


@pytest.fixture
def following(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Return a build of another version, for containers with a bundle in the rig."""
    monkeypatch.setenv("CONTAINERD_STATE", str(rig.root))
    return Build.copy(rig.root / "next", NEXT)
