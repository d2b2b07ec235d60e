"""The core of the other modules under the containerds of other Debian releases: 1.7 and 2.

tests/managers/fetch.sh gets them.  Everything runs under one of them with
``SHIM_TEST_CONTAINERD_BIN=.cache/managers/SUITE/usr/bin tests/run.sh tests/e2e``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e import test_events, test_restart, test_run
from tests.e2e.conftest import leaving_nothing, open_containerd
from tests.e2e.ctr import Ctr, attached

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e
FETCHED = Path(__file__).parent.parent.parent / ".cache/managers"


@pytest.fixture(scope="module", params=["trixie", "sid"])
def manager(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ctr]:
    directory = FETCHED / request.param / "usr/bin"
    if not (directory / "ctr").exists():
        pytest.skip(f"tests/managers/fetch.sh has not fetched {directory}")
    with open_containerd(tmp_path_factory.mktemp("image"), directory) as daemon:
        yield Ctr(daemon)


@pytest.fixture
def ctr(manager: Ctr, request: pytest.FixtureRequest) -> Iterator[Ctr]:
    with leaving_nothing(manager, request):
        yield manager


def test_a_detached_container_is_entered_waited_for_and_killed(ctr: Ctr) -> None:
    name = ctr.start("sleep", "1000")
    result = ctr.exec(name, "sh", "-c", "echo in; cat; exit 3", stdin=b"more\n")
    assert (result.code, result.text) == (3, "in\nmore\n")
    with attached(ctr, "task", "attach", name) as process:
        ctr.kill(name)
        assert process.wait(30) == 137
    assert ctr.state(name) is None  # `attach` deletes the task that it saw end


# The same tests, with this module's ``ctr``.
test_run_prints_and_passes_the_exit_code = test_run.test_run_prints_and_passes_the_exit_code
test_events_in_order = test_events.test_the_life_of_a_container_is_told_in_order
test_out_of_memory = test_events.test_running_out_of_memory_is_told_before_the_exit
test_life_without_containerd = test_restart.test_containers_live_on_when_containerd_is_killed
test_an_exit_without_containerd = (
    test_restart.test_an_exit_while_containerd_is_away_is_not_forgotten
)
test_a_pod = test_restart.test_a_pod_has_one_shim_and_both_outlive_containerd
test_a_killed_shim = test_restart.test_a_killed_shim_takes_its_container_along_and_leaves_nothing
