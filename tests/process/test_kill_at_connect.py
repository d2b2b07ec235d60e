"""A client that connects while the daemon is killed gets its answer from the replacement."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

from shim.api.task_pb2 import ConnectRequest, ConnectResponse
from shim.linux import sockets
from shim.ttrpc.protocol import ClientProtocol
from tests.e2e.waiting import PATIENCE
from tests.process.survival import enable

if TYPE_CHECKING:
    from tests.process.servers import Server

TASK = "containerd.task.v3.Task"
# One client in so many may be lost, and two more: its daemon is killed between two system calls.
_LOST = 50


def ask(address: str, kill_after: float = 0, daemon: int = 0) -> int:
    """Connect and call; return the pid of the daemon that answers, 0 if the connection ends.

    Kill ``daemon``, if it is given, ``kill_after`` seconds after the connect.
    """
    request = ConnectRequest(id="c1").SerializeToString()
    client = ClientProtocol()
    _, frame = client.encode_request(TASK, "Connect", request)
    with sockets.connect_blocking(address, 10 * PATIENCE) as sock:
        if daemon:
            until = time.perf_counter() + kill_after
            while time.perf_counter() < until:
                pass
            os.kill(daemon, signal.SIGKILL)
        try:
            sock.sendall(frame)
            while data := sock.recv(1 << 16):
                for response in client.receive_data(data):
                    return ConnectResponse.FromString(response.payload).shim_pid
        except (BrokenPipeError, ConnectionResetError):
            pass
        return 0


@pytest.mark.cold  # the fork server is the test's own
async def test_a_client_that_connects_at_the_time_of_the_kill_is_answered(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIO_SHIM_CONFIG", enable(server.rig))
    kills = int(os.environ.get("SHIM_TEST_KILLS", "30"))
    await server.start(server.rig.bundle("c1", "true"), TRIO_SHIM_DEATHS="0")
    address = server.rig.address
    rng = random.Random(os.environ.get("SHIM_TEST_SEED", "1"))
    lost = 0
    for _ in range(kills):
        begin = time.perf_counter()
        daemon = ask(address)
        assert daemon
        # The daemon accepts within the time of a call, which depends on the machine's load.
        after = rng.random() * (time.perf_counter() - begin)
        lost += not ask(address, after, daemon)
    server.rig.daemons[:] = [ask(address)]
    print(f"{lost} of {kills} clients lost")
    assert lost <= 2 + kills // _LOST
