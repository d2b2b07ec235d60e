"""containerd is replaced by an older release under running pods, and by the newer one again."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.cri.conftest import open_node
from tests.cri.leftovers import wait_nothing_left
from tests.cri.pods import SLEEP, Pod
from tests.e2e.managers import FETCHED, MANAGERS, Manager, find
from tests.matrix import record_manager

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e
SCENARIO = "Downgrade and upgrade of the manager"
MODERN = [manager for manager in MANAGERS if manager.modern]
OLDER = {
    # With the launcher of the newer one, and so with its fork server.
    str(manager): replace(manager, native=True)
    for manager in map(find, (None, FETCHED / "trixie/usr/bin"))
    if manager.there and manager.version < (2,)
}


@pytest.mark.skipif(not MODERN, reason="tests/managers/fetch.sh has fetched no containerd 2")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("older", OLDER.values(), ids=str)
def test_a_pod_of_containerd_2_3_lives_on_under_an_older_one_and_back(
    older: Manager, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    newer = MODERN[0]
    record_manager(request, f"CRI of {older.name}")
    with open_node(tmp_path, newer) as node:
        pod = Pod(node, "pod0")
        pod.run()
        containers = [pod.start(*SLEEP) for _ in range(2)]
        shims, pids = node.shims(), [pod.pid(each) for each in containers]
        assert len(shims) == 1
        # The newer one called no `start` for these.
        assert all((node.bundle(each) / "sandbox").exists() for each in containers)
        for manager in (older, newer):
            node.stop()
            node.manager = manager
            node.start()
            assert node.shims() == shims
            assert [pod.state(each) for each in containers] == ["CONTAINER_RUNNING"] * 2
            assert [pod.pid(each) for each in containers] == pids
            for each in containers:
                assert pod.exec(each, "sh", "-c", "exit 3").exit_code == 3
            assert pod.ready()
            joined = pod.start("sh", "-c", "exit 12")
            assert pod.wait_exit(joined)[0] == 12
        pod.end()
        assert not wait_nothing_left(node, [pod])
