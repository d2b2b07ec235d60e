"""Running daemons are replaced by another version; their containers run on."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from shim.api import task_pb2
from tests.process.builds import CURRENT, Build

if TYPE_CHECKING:
    from tests.process.servers import Server

NEXT = "9.9.9"


@pytest.fixture
def surviving(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    path = server.rig.root / "host.toml"
    path.write_text("survive = true\n")
    monkeypatch.setenv("TRIO_SHIM_CONFIG", str(path))
    # The container is found by its bundle.
    monkeypatch.setenv("CONTAINERD_STATE", str(server.rig.root / "state"))
    return server


@pytest.fixture
def following(surviving: Server) -> Build:
    return Build.copy(surviving.rig.root / "next", NEXT)


async def daemon_of(server: Server) -> tuple[int, str]:
    """Connect to the address; return the pid of the daemon there, and its version."""
    task = await server.rig.connect()
    reply = await task.Connect(task_pb2.ConnectRequest(id="any"), timeout=5)
    server.rig.track(reply.shim_pid)
    return reply.shim_pid, reply.version


async def test_a_daemon_becomes_that_of_the_next_version_and_back(
    surviving: Server, following: Build
) -> None:
    rig = surviving.rig
    bundle = rig.bundle("c1", "sh", "-c", "sleep 1000 & wait")
    old = await surviving.start(bundle)
    task = await rig.connect()
    created = await rig.run(task, bundle)
    for build in (following, CURRENT, following):
        done = await build.shimctl("upgrade", "--all")
        assert (done.returncode, done.stderr) == (0, "")
        pid, version = await daemon_of(surviving)
        assert (version, pid != old) == (build.version, True)
        old = pid
    # The connection of the first client goes on.
    state = await task.State(task_pb2.StateRequest(id="c1"), timeout=5)
    assert state.pid == created.pid
    await task.Kill(task_pb2.KillRequest(id="c1", signal=signal.SIGKILL), timeout=5)
    exit_ = await task.Wait(task_pb2.WaitRequest(id="c1"), timeout=5)
    assert exit_.exit_status == 137
