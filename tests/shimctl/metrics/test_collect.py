"""The figures of real containers, under our shim and the stock one."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from shimctl.discover import Found
from shimctl.metrics import collect
from shimctl.metrics.exposition import text_of
from tests.shimctl.place import PATIENCE, Place, eventually, open_place

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["ours", "go"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with open_place(request.param) as place:
        monkeypatch.setenv("SHIMCTL_STATE", str(place.state))
        yield place


def measured(place: Place) -> collect.Snapshot:
    return trio.run(partial(collect.collect, namespace=place.namespace))


def test_every_container_and_shim_is_measured(place: Place) -> None:
    place.sleeper("c1")
    place.done("exec", "c1", "true")
    snapshot = measured(place)
    (container,) = snapshot.containers
    (shim,) = snapshot.shims
    assert container.found.id == "c1"
    assert container.stats is not None
    assert container.stats.pids >= 1
    assert (shim.up, shim.name) == (True, "c1")
    assert shim.memory
    assert 1 << 20 < shim.memory < 200 << 20
    assert shim.fds
    if place.kind == "ours":
        assert shim.counters
        assert shim.counters.execs == 1
        assert shim.counters.exec_time > 0
    else:
        assert shim.counters is None
    names = {family.name for family in text_string_to_metric_families(text_of(snapshot))}
    assert "container_cpu_usage_seconds" in names


def test_a_stopped_shim_is_down_and_delays_the_others_by_its_limit(place: Place) -> None:
    place.sleeper("c1")
    place.sleeper("c2")
    stopped = place.json("inspect", "c1")["shim"]["pid"]
    os.kill(stopped, signal.SIGSTOP)
    try:
        started = time.monotonic()
        snapshot = measured(place)
        assert time.monotonic() - started < PATIENCE / 2
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert {one.found.id: one.up for one in snapshot.shims} == {"c1": False, "c2": True}
    assert {one.found.id: one.stats is not None for one in snapshot.containers} == {
        "c1": False,
        "c2": True,
    }


def test_a_killed_shim_is_down(place: Place) -> None:
    place.sleeper("c1")
    os.kill(place.json("inspect", "c1")["shim"]["pid"], signal.SIGKILL)
    eventually(lambda: [one.up for one in measured(place).shims] == [False])


async def test_a_socket_that_no_shim_serves_counts_no_container(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def list_shims(**_: object) -> list[Found]:
        return [Found("", "", "unix:///dead")]

    monkeypatch.setattr(collect, "list_shims", list_shims)
    assert [one.containers for one in (await collect.collect()).shims] == [0]
