"""A journal has a size, and past it the oldest events are dropped, exits last."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
import trio.lowlevel

from shim.api.events_pb2 import TaskExit, TaskStart
from shim.events import backlog as backlog_module
from shim.events import journal as journal_module
from tests.events.delivering import (
    Manager,
    flush,
    publish,
    publishing,
    serving,
    source_of,
    waiting_count,
)

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.events.disks import Said


async def test_past_its_size_the_journal_is_written_anew_with_what_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    monkeypatch.setattr(journal_module, "SIZE", 8192)
    path = tmp_path / "events.journal"
    biggest = 0
    async with publishing(tmp_path) as publisher, serving(tmp_path / "events", Manager()):
        for pid in range(500):
            publish(publisher, pid)
            biggest = max(biggest, path.stat().st_size)
            with trio.fail_after(20):
                while publisher.waiting > 3:  # never empty, so that nothing else makes room
                    await trio.lowlevel.checkpoint()
        assert waiting_count(tmp_path) == publisher.waiting
    assert 4096 < biggest <= 8192
    assert not said()


async def test_when_too_much_waits_the_oldest_go_first_and_exits_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    monkeypatch.setattr(journal_module, "SIZE", 8192)
    path = tmp_path / "events.journal"
    manager = Manager()
    async with publishing(tmp_path) as publisher:
        for number in range(1, 501):
            exited = number % 20 == 0
            event = TaskExit(pid=number) if exited else TaskStart(container_id="c1", pid=number)
            source_of(publisher).publish(event)
            assert path.stat().st_size <= 8192
    assert "events dropped" in said()
    async with publishing(tmp_path) as publisher, serving(tmp_path / "events", manager):
        await flush(publisher)
    exits = [e for e in manager.got if e.topic == "/tasks/exit"]
    assert [TaskExit.FromString(e.event.value).pid for e in exits] == list(range(20, 501, 20))
    times = [envelope.timestamp.ToNanoseconds() for envelope in manager.got]
    assert times == sorted(times)
    # The first may have been on its way; of the others the youngest are left.
    starts = [
        TaskStart.FromString(e.event.value).pid for e in manager.got if e.topic == "/tasks/start"
    ]
    rest = [number for number in range(1, 501) if number % 20]
    assert starts == [1, *rest[1 - len(starts) :]]


async def test_exits_alone_are_bounded_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    monkeypatch.setattr(backlog_module, "LIMIT", 100)
    async with publishing(tmp_path) as publisher:
        for pid in range(1000):
            source_of(publisher).publish(TaskExit(pid=pid))
            assert publisher.waiting <= 100
        assert waiting_count(tmp_path) == publisher.waiting
    assert "events dropped" in said()
