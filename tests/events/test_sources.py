"""Each container of a daemon has its own journal, and all have one queue."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import trio

from shim.api.events_pb2 import TaskStart
from shim.events import backlog as backlog_module
from shim.events import threadedjournal
from shim.events.backlog import Backlog
from shim.events.publisher import EventPublisher, open_publisher
from shim.events.threadedjournal import WAIT, ThreadedJournal
from tests.events.delivering import Manager, serving
from tests.frozen import freezable_disk

if TYPE_CHECKING:
    from pathlib import Path

    from shim.events.publisher import EventSource


def opened(publisher: object, *journals: Path) -> list[EventSource]:
    assert isinstance(publisher, EventPublisher)
    return [publisher.open_source(str(journal)) for journal in journals]


def kept(journal: Path) -> list[int]:
    """Return the pids of the undelivered events in a journal that no process owns."""
    backlog = Backlog(str(journal))
    if not journal.exists():
        return []
    assert backlog.load()
    try:
        return [TaskStart.FromString(one.event.value).pid for one in backlog.envelopes()]
    finally:
        backlog.close()


async def flush(publisher: object) -> None:
    assert isinstance(publisher, EventPublisher)
    with trio.fail_after(20):
        await publisher.flush()


async def test_events_of_several_containers_arrive_in_the_order_they_happened(
    tmp_path: Path,
) -> None:
    manager = Manager()
    async with open_publisher(str(tmp_path / "events"), "ns") as publisher:
        sources = opened(publisher, tmp_path / "a", tmp_path / "b", tmp_path / "c")
        for pid in range(90):
            sources[pid * 7 % 3].publish(TaskStart(pid=pid))
        async with serving(tmp_path / "events", manager):
            await flush(publisher)
    assert manager.pids == list(range(90))


@pytest.mark.parametrize("step", [1, -1], ids=["the clock runs", "the clock is set back"])
async def test_events_of_several_containers_keep_their_order_in_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """With a clock that is set back, only the order within a container is kept."""
    manager, now = Manager(), 1_700_000_000_000_000_000
    journals = [tmp_path / name for name in "abc"]
    async with open_publisher(str(tmp_path / "events"), "ns") as publisher:
        sources = opened(publisher, *journals)
        for pid in range(90):
            monkeypatch.setattr(time, "time_ns", lambda: now + step * pid)  # noqa: B023 - called here
            sources[pid * 7 % 3].publish(TaskStart(pid=pid))
    monkeypatch.undo()
    async with open_publisher(str(tmp_path / "events"), "ns") as publisher:
        sources = opened(publisher, *journals)
        sources[0].publish(TaskStart(pid=90))
        async with serving(tmp_path / "events", manager):
            await flush(publisher)
    assert manager.pids[-1] == 90
    if step > 0:
        assert manager.pids == list(range(91))
    for first in range(3):
        of_one = [pid for pid in manager.pids[:-1] if pid * 7 % 3 == first]
        assert of_one == sorted(of_one)


async def test_a_container_leaves_only_its_own_events(tmp_path: Path) -> None:
    async with open_publisher(str(tmp_path / "events"), "ns") as publisher:
        one, other = opened(publisher, tmp_path / "a", tmp_path / "b")
        for pid in range(4):
            (other if pid % 2 else one).publish(TaskStart(pid=pid))
    assert (kept(tmp_path / "a"), kept(tmp_path / "b")) == ([0, 2], [1, 3])


async def test_the_journal_of_a_deleted_container_goes_with_its_last_event(
    tmp_path: Path,
) -> None:
    journal = tmp_path / "a"
    manager = Manager()
    async with open_publisher(str(tmp_path / "events"), "ns") as publisher:
        one, _ = opened(publisher, journal, tmp_path / "b")
        one.publish(TaskStart(pid=1))
        one.close()
        assert journal.stat().st_size > 0
        async with serving(tmp_path / "events", manager):
            await flush(publisher)
            assert not journal.exists()
            # An exec can exit after its container was deleted.
            one.publish(TaskStart(pid=2))
            await flush(publisher)
        assert not journal.exists()
        assert len(publisher._sources) == 1  # type: ignore[union-attr] # an EventPublisher
    assert manager.pids == [1, 2]


async def test_a_container_made_anew_in_its_bundle_is_told_after_the_earlier_one(
    tmp_path: Path,
) -> None:
    """The bundle is the same directory, or a new one of that name."""
    for number, is_new in enumerate((False, True)):
        bundle, events = tmp_path / f"c{number}", tmp_path / f"events{number}"
        bundle.mkdir()
        manager = Manager()
        async with open_publisher(str(events), "ns") as publisher:
            (first,) = opened(publisher, bundle / "journal")
            first.publish(TaskStart(pid=1))
            first.close()
            if is_new:
                (bundle / "journal").unlink()
            (second,) = opened(publisher, bundle / "journal")
            second.publish(TaskStart(pid=2))
            assert (first is second) is not is_new
            assert (bundle / "journal").stat().st_size > 0
            async with serving(events, manager):
                await flush(publisher)
        assert manager.pids == [1, 2]


async def test_a_full_queue_of_one_container_costs_no_event_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog_module, "LIMIT", 20)
    manager = Manager()
    async with open_publisher(str(tmp_path / "events"), "ns") as publisher:
        quiet, busy = opened(publisher, tmp_path / "a", tmp_path / "b")
        quiet.publish(TaskStart(pid=1))
        for pid in range(100, 200):
            busy.publish(TaskStart(pid=pid))
        async with serving(tmp_path / "events", manager):
            await flush(publisher)
    assert manager.pids[0] == 1
    assert len(manager.pids) <= 21
    assert manager.pids[-1] == 199


async def test_the_journals_on_a_disk_that_hangs_wait_once_in_total(tmp_path: Path) -> None:
    manager = Manager()
    with freezable_disk(tmp_path / "image", tmp_path / "disk") as disk:
        async with open_publisher(str(tmp_path / "events"), "ns") as publisher:
            sources = opened(publisher, *(disk.path / f"j{i}" for i in range(20)))
            for source in sources:
                source.publish(TaskStart(pid=1))
            disk.freeze()
            try:
                before = time.monotonic()
                for source in sources:
                    source.publish(TaskStart(pid=2))
                assert time.monotonic() - before < 16 * WAIT
            finally:
                disk.thaw()
            async with serving(tmp_path / "events", manager):
                await flush(publisher)
    assert manager.pids == 20 * [1] + 20 * [2]


async def test_a_journal_of_a_disk_that_hung_for_an_earlier_one_can_be_read(
    tmp_path: Path,
) -> None:
    with freezable_disk(tmp_path / "image", tmp_path / "disk") as disk:
        for name in ("earlier", "later"):
            (disk.path / name).touch()
        earlier = ThreadedJournal(str(disk.path / "earlier"))
        earlier.load()
        disk.freeze()
        try:
            earlier.rewrite([])
            earlier.close(remove=True)
        finally:
            disk.thaw()
        with trio.fail_after(20):
            while threadedjournal._late_devices:
                await trio.sleep(0.01)
        later = ThreadedJournal(str(disk.path / "later"))
        assert later.load() == []
        later.close(remove=True)
