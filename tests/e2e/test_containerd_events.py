"""The events of containerd's containers, as shimctl subscribes to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from shim.scope import background
from shimctl.standalone.containerd import follow
from tests.e2e.waiting import PATIENCE

if TYPE_CHECKING:
    from shimctl.standalone.published import Published
    from tests.e2e.ctr import Ctr

pytestmark = pytest.mark.e2e
SCENARIO = "Events"


async def test_a_follower_sees_the_events_of_each_containerd_at_an_address(ctr: Ctr) -> None:
    seen: list[Published] = []
    problems: list[str] = []

    async def take(one: Published) -> None:
        await trio.lowlevel.checkpoint()
        if one.namespace == ctr.containerd.namespace:
            seen.append(one)

    async def subscribed() -> None:
        """Wait until an event arrives, since containerd does not confirm a subscription."""
        seen.clear()
        with trio.fail_after(20 * PATIENCE):
            while not seen:
                await trio.to_thread.run_sync(ctr.start, "true")
                await trio.sleep(0.2)

    async def until(topic: str, container: str) -> Published:
        with trio.fail_after(20 * PATIENCE):
            while True:
                for one in seen:
                    if (one.topic, one.container) == (topic, container):
                        return one
                await trio.sleep(0.02)

    async with background(lambda: follow(ctr.containerd.address, take, problems.append)):
        for _ in range(2):
            await subscribed()
            name = await trio.to_thread.run_sync(ctr.start, "sh", "-c", "exit 7")
            exited = await until("/tasks/exit", name)
            assert exited.fields["exit_status"] == 7
            assert exited.at is not None
            created = await until("/containers/create", name)
            assert "busybox" in created.fields["image"]
            await trio.to_thread.run_sync(ctr.containerd.restart)
    assert problems == []
