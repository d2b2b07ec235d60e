"""A daemon that ends delivers what it has, while its manager takes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from shim import daemon
from shim.api.events_pb2 import TaskStart
from shim.events.publisher import EventPublisher, open_publisher
from tests.events.delivering import Manager, serving

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def test_a_slow_manager_gets_every_event_of_a_daemon_that_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "FLUSH", 0.3)
    manager = Manager()
    accept = manager.Forward

    async def slowly(stream: object) -> None:
        await trio.sleep(0.05)
        await accept(stream)  # type: ignore[arg-type] # as the server gives it

    monkeypatch.setattr(manager, "Forward", slowly)
    async with (
        serving(tmp_path / "events", manager),
        open_publisher(str(tmp_path / "events"), "ns") as publisher,
    ):
        assert isinstance(publisher, EventPublisher)
        for pid in range(20):
            publisher.open_source(str(tmp_path / f"j{pid}")).publish(TaskStart(pid=pid))
        with trio.fail_after(60):
            await daemon._flush(publisher)
        assert publisher.waiting == 0
    assert manager.pids == list(range(20))


async def test_a_manager_that_takes_nothing_is_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "FLUSH", 0.1)
    async with open_publisher(str(tmp_path / "events"), "ns") as publisher:
        source = publisher.open_source(str(tmp_path / "journal"))
        for pid in range(20):
            source.publish(TaskStart(pid=pid))
        with trio.fail_after(10):
            await daemon._flush(publisher)
        assert publisher.waiting == 20
