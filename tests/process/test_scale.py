"""Many shims on one machine, and the manager that comes back to all of them."""

from __future__ import annotations

import json
import signal
import statistics
import time
from typing import TYPE_CHECKING

import pytest
import trio
from google.protobuf.empty_pb2 import Empty

from shim.api.task_pb2 import (
    ConnectRequest,
    ConnectResponse,
    DeleteRequest,
    DeleteResponse,
    KillRequest,
    PidsRequest,
    PidsResponse,
    ShutdownRequest,
    WaitRequest,
    WaitResponse,
)
from tests.bench.caller import Caller
from tests.bench.procs import threads, wakeups
from tests.e2e.waiting import PATIENCE
from tests.loops import turns
from tests.process.rig import NAMESPACE, Rig, wait_gone

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e

SHIMS = turns(60, 150)
FEW = 15
SETTLE = 20.0  # seconds until nothing happens any more
WATCHED = 1.0  # seconds without a wake-up


async def test_many_shims_are_idle_and_found_again_in_a_time_that_grows_with_them(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIO_SHIM_FORKSERVER", "on")
    monkeypatch.setenv("TRIO_SHIM_FORKSERVER_DIR", str(rig.root / "forkserver"))
    first = rig.bundle("c0", "sleep", "1000")
    bundles = [first, *(_like(first, f"c{number}") for number in range(1, SHIMS))]
    inits, addresses = [], []
    for bundle in bundles:
        task = await rig.start(bundle)
        addresses.append(rig.address)
        inits.append((await rig.run(task, bundle)).pid)
    assert len(set(rig.daemons)) == SHIMS

    few = _reconnect(addresses[:FEW], bundles, inits)
    every = _reconnect(addresses, bundles, inits)
    # The cost of a container does not depend on their number.  The shortest tenth: other
    # processes of the machine make some of them longer.
    shortest = [statistics.quantiles(taken, n=10)[0] for taken in (few, every)]
    assert shortest[1] < 2 * shortest[0], (few, every)

    for pid in rig.daemons:
        assert threads(pid) == 1
    # The last of them still has to close the connection of its events.
    with trio.fail_after(SETTLE * PATIENCE):
        while await _woken(rig):
            pass

    for bundle, address in zip(bundles, addresses, strict=True):
        _end(address, bundle.name)
    await wait_gone(rig.daemons, 60)


async def _woken(rig: Rig) -> int:
    """Return how often all shims together have woken in a while."""
    before = sum(map(wakeups, rig.daemons))
    await trio.sleep(WATCHED)
    return sum(map(wakeups, rig.daemons)) - before


def _like(first: Path, id_: str) -> Path:
    """Make a bundle as ``first`` is, without asking runc for its defaults again."""
    path = first.with_name(id_)
    path.mkdir()
    config = json.loads((first / "config.json").read_text())
    config["linux"]["cgroupsPath"] = f"/trio-shim-test/{first.parent.name}-{id_}"
    (path / "config.json").write_text(json.dumps(config))
    return path


def _end(address: str, id_: str) -> None:
    with Caller(address, NAMESPACE, 3) as caller:
        caller.call("Kill", KillRequest(id=id_, signal=signal.SIGKILL), Empty)
        ended = caller.call("Wait", WaitRequest(id=id_), WaitResponse)
        assert ended.exit_status == 128 + signal.SIGKILL
        caller.call("Delete", DeleteRequest(id=id_), DeleteResponse)
        caller.send("Shutdown", ShutdownRequest(id=id_).SerializeToString())


def _reconnect(addresses: list[str], bundles: list[Path], inits: list[int]) -> list[float]:
    """Do what containerd does for each shim when it starts; return the seconds of each."""
    taken = []
    for address, bundle, init in zip(addresses, bundles, inits, strict=False):
        began = time.perf_counter()
        with Caller(address, NAMESPACE, 3) as caller:
            found = caller.call("Connect", ConnectRequest(id=bundle.name), ConnectResponse)
            pids = caller.call("Pids", PidsRequest(id=bundle.name), PidsResponse)
        taken.append(time.perf_counter() - began)
        assert found.task_pid == init
        assert [process.pid for process in pids.processes] == [init]
    return taken
