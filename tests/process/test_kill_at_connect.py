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
# The longest time from a connect(2) to the kill, in seconds: the daemon has answered by then.
_LONGEST = 0.0005
# One client in so many may be lost: its daemon is killed between two system calls.
_LOST = 50


def ask(address: str, rng: random.Random | None, daemon: int = 0) -> int:
    """Connect and call; return the pid of the daemon that answers, 0 if the connection ends.

    With ``rng``, kill ``daemon`` at a random time after the connect.
    """
    request = ConnectRequest(id="c1").SerializeToString()
    client = ClientProtocol()
    _, frame = client.encode_request(TASK, "Connect", request)
    with sockets.connect_blocking(address, 10 * PATIENCE) as sock:
        if rng is not None:
            until = time.perf_counter() + rng.random() * _LONGEST
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
        daemon = ask(address, None)
        assert daemon
        lost += not ask(address, rng, daemon)
    server.rig.daemons[:] = [ask(address, None)]
    print(f"{lost} of {kills} clients lost")
    assert lost <= 1 + kills // _LOST
