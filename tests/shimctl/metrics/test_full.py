"""A shim with very many containers has figures for each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from grpclib.const import Cardinality, Handler

from shim.api import cgroups_v2_pb2
from shim.api import task_pb2 as api
from shim.ttrpc.services import unary
from shimctl.discover import Found, Health
from shimctl.metrics import collect as module
from shimctl.metrics.collect import AT_ONCE, collect
from tests.shimctl.peers import FakeTask, serving

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trio.testing import MockClock

COUNT = 100


class Full(FakeTask):
    """Answers Stats after ``delay`` seconds, one after the other if it is ``slow``."""

    def __init__(self, delay: float, *, slow: bool) -> None:
        super().__init__(3)
        self.most = self._running = 0
        self._delay = delay
        self._turn = trio.CapacityLimiter(1 if slow else COUNT)

    @unary
    async def Stats(self, request: api.StatsRequest) -> api.StatsResponse:
        if request.id:
            self._running += 1
            self.most = max(self.most, self._running)
            async with self._turn:
                await trio.sleep(self._delay)
            self._running -= 1
        metrics = cgroups_v2_pb2.Metrics()
        return api.StatsResponse(
            stats=AnyMessage(
                type_url=metrics.DESCRIPTOR.full_name, value=metrics.SerializeToString()
            )
        )

    def handlers(self) -> dict[str, Handler]:
        route = "/containerd.task.v3.Task/Stats"
        unary_unary = Cardinality.UNARY_UNARY
        stats = Handler(self.Stats, unary_unary, api.StatsRequest, api.StatsResponse)
        return super().handlers() | {route: stats}


@pytest.mark.parametrize(
    "shim_of",
    [lambda: Full(0.02, slow=False), lambda: Full(0.003, slow=True)],
    ids=["many", "slow"],
)
async def test_every_container_of_a_very_full_shim_has_figures(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
    shim_of: Callable[[], Full],
) -> None:
    # By this clock the work of the test's own process takes no time.
    full = shim_of()
    async with serving(tmp_path / "full", full) as address:
        found = [
            Found("ns", f"c{number}", address, health=Health.UP, shim_pid=4_000_000)
            for number in range(COUNT)
        ]

        async def list_shims(**_: object) -> list[Found]:
            return found

        monkeypatch.setattr(module, "list_shims", list_shims)
        snapshot = await collect(timeout=0.2)
    assert [one.found.id for one in snapshot.containers if one.stats is None] == []
    assert full.most == AT_ONCE
