"""A daemon that is killed is replaced by the fork server, at the same address."""

from __future__ import annotations

import os
import signal

import pytest

from tests.process.servers import Server, parent_of


@pytest.fixture
def surviving(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    path = server.rig.root / "host.toml"
    path.write_text("survive = true\n")
    monkeypatch.setenv("TRIO_SHIM_CONFIG", str(path))
    return server


async def connect(server: Server) -> int:
    """Connect to the address; return the pid of the daemon there."""
    server.rig.daemons.clear()
    await server.rig.connect()
    return server.rig.daemons[0]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_killed_daemon_is_replaced_at_its_address(
    surviving: Server, number: signal.Signals
) -> None:
    daemon = await surviving.start(surviving.rig.bundle("c1", "true"))
    os.kill(daemon, number)
    replacement = await connect(surviving)
    assert replacement != daemon
    assert parent_of(replacement) == await surviving.wait_up()
