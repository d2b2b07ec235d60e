"""Events are on disk, too, and outlive their publisher."""

from __future__ import annotations

import fcntl
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.lowlevel

from shim.api.envelope_pb2 import Envelope
from shim.api.events_pb2 import TaskExit, TaskStart
from shim.events import backlog as backlog_module
from shim.events import journal as journal_module
from shim.events.backlog import Backlog
from shim.events.encoding import decode, encode
from shim.events.journal import Entry
from shim.events.publisher import EventPublisher, EventSource, open_publisher
from shim.events.threadedjournal import ThreadedJournal
from tests.events.test_publisher import Manager, serving
from tests.frozen import freezable_disk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.events.disks import Disk, Said


@asynccontextmanager
async def publishing(directory: Path) -> AsyncIterator[EventPublisher]:
    """Open the publisher that a daemon of this bundle opens."""
    opened = open_publisher(str(directory / "events"), "ns", str(directory / "events.journal"))
    async with opened as publisher:
        assert isinstance(publisher, EventPublisher)
        yield publisher


def source_of(publisher: EventPublisher) -> EventSource:
    """Return the source of the bundle for which the publisher was opened."""
    return publisher._sources[0]


def publish(publisher: EventPublisher, *pids: int) -> None:
    for pid in pids:
        source_of(publisher).publish(TaskStart(container_id="c1", pid=pid))


async def flush(publisher: EventPublisher) -> None:
    with trio.fail_after(60):
        await publisher.flush()


def waiting(directory: Path) -> list[int]:
    """Read the pids of the events that are left in the journal."""
    backlog = Backlog(str(directory / "events.journal"))
    assert backlog.load(), "somebody has it"
    try:
        return [TaskStart.FromString(one.event.value).pid for one in backlog.envelopes()]
    finally:
        backlog.close()


async def test_what_was_not_delivered_goes_first_when_another_daemon_starts(
    tmp_path: Path,
) -> None:
    async with publishing(tmp_path) as publisher:
        publish(publisher, 1, 2, 3)
    assert waiting(tmp_path) == [1, 2, 3]
    async with publishing(tmp_path) as publisher:
        publish(publisher, 4)
        manager = Manager()
        async with serving(tmp_path / "events", manager):
            await flush(publisher)
    assert manager.pids == [1, 2, 3, 4]
    assert not (tmp_path / "events.journal").exists()


async def test_it_goes_out_with_the_time_and_namespace_it_had(tmp_path: Path) -> None:
    async with publishing(tmp_path) as publisher:
        publish(publisher, 1)
        [before] = source_of(publisher).backlog.envelopes()
    manager = Manager()
    journal = str(tmp_path / "events.journal")
    async with (
        serving(tmp_path / "events", manager),
        open_publisher(str(tmp_path / "events"), "other", journal) as publisher,
    ):
        with trio.fail_after(20):
            await publisher.flush()
    assert manager.got == [before]


async def test_what_was_acknowledged_is_not_sent_by_another_daemon(tmp_path: Path) -> None:
    first, second = Manager(), Manager()
    async with publishing(tmp_path) as publisher:
        async with serving(tmp_path / "events", first):
            publish(publisher, *range(100))
            with trio.fail_after(20):
                while len(first.got) < 50:
                    await trio.lowlevel.checkpoint()
        assert 0 < publisher.waiting < 100
    async with publishing(tmp_path) as publisher, serving(tmp_path / "events", second):
        await flush(publisher)
    told = first.pids + second.pids
    # The one under way when the first went has no answer, and may have been heard.
    assert len(told) <= 101
    assert sorted(set(told)) == list(range(100))
    assert (first.pids, second.pids) == (sorted(first.pids), sorted(second.pids))


async def test_what_is_delivered_takes_no_room_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "SLACK", 150)
    path = tmp_path / "events.journal"
    async with publishing(tmp_path) as publisher:
        assert not path.exists()
        async with serving(tmp_path / "events", Manager()):
            publish(publisher, 1)
            assert path.stat().st_mode & 0o777 == 0o600
            await flush(publisher)
            assert waiting_count(tmp_path) == 0
            publish(publisher, 2)
            assert waiting_count(tmp_path) == 1
            await flush(publisher)
            assert path.stat().st_size == 0
    assert not path.exists()


async def test_without_an_address_there_is_no_journal(tmp_path: Path) -> None:
    async with open_publisher("", "ns", str(tmp_path / "events.journal")) as publisher:
        publisher.open_source(str(tmp_path / "events.journal")).publish(TaskStart())
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
async def test_ten_thousand_events_are_delivered_in_order_within_seconds(tmp_path: Path) -> None:
    manager = Manager()
    async with publishing(tmp_path) as publisher:
        publish(publisher, *range(10_000))
        assert waiting_count(tmp_path) == 10_000
    async with publishing(tmp_path) as publisher, serving(tmp_path / "events", manager):
        with trio.fail_after(20):  # some 2 s on an idle machine
            await publisher.flush()
    assert manager.pids == list(range(10_000))


def waiting_count(directory: Path) -> int:
    """Count the records in a journal that a process owns."""
    return len(decode((directory / "events.journal").read_bytes()).waiting)


async def test_a_journal_has_one_owner(tmp_path: Path, said: Said) -> None:
    async with publishing(tmp_path) as publisher:
        publish(publisher, 1)
        assert not Backlog(str(tmp_path / "events.journal")).load()
        async with publishing(tmp_path) as second:
            assert "another process has the journal" in said()
            assert second.waiting == 0
            publish(second, 2)
    assert waiting(tmp_path) == [1]


@pytest.mark.parametrize("leaves", [[], [1, 2]])
async def test_what_an_owner_leaves_is_taken_over_when_it_goes(
    tmp_path: Path, leaves: list[int]
) -> None:
    """As ``delete`` may own it, when a shim is started again in its bundle."""
    path = tmp_path / "events.journal"
    async with publishing(tmp_path) as publisher:
        publish(publisher, 1, 2)
    owner = Backlog(str(path))
    assert owner.load()
    manager = Manager()
    async with publishing(tmp_path) as publisher:
        publish(publisher, 3)
        while len(owner) > len(leaves):
            owner.acknowledge()
        owner.close()
        publish(publisher, 4)
        # The first of ours may be on its way already.
        expected = [3, *leaves, 4]
        records = decode(path.read_bytes()).waiting
        envelopes = [Envelope.FromString(record.payload) for record in records]
        assert [TaskStart.FromString(one.event.value).pid for one in envelopes] == expected
        async with serving(tmp_path / "events", manager):
            await flush(publisher)
    assert manager.pids == expected
    assert not path.exists()


async def test_what_an_owner_leaves_is_taken_over_though_no_event_follows(tmp_path: Path) -> None:
    async with publishing(tmp_path) as publisher:
        publish(publisher, 1, 2)
    owner = Backlog(str(tmp_path / "events.journal"))
    assert owner.load()
    manager = Manager()
    async with publishing(tmp_path) as publisher:
        publish(publisher, 3)
        owner.close()
        with trio.fail_after(20):
            while publisher.waiting < 3:
                await trio.sleep(0.01)
        async with serving(tmp_path / "events", manager):
            await flush(publisher)
    assert manager.pids == [3, 1, 2]


async def test_a_daemon_that_lets_go_leaves_a_file_of_another_alone(tmp_path: Path) -> None:
    path = tmp_path / "events.journal"
    async with publishing(tmp_path) as publisher, serving(tmp_path / "events", Manager()):
        publish(publisher, 1)
        await flush(publisher)
        # The manager removed the bundle and made another of its name.
        path.rename(tmp_path / "old")
        path.write_bytes(encode(b""))
    assert path.stat().st_size > 0


@pytest.mark.parametrize("other", [None, b"another's"], ids=["removed", "replaced"])
async def test_a_journal_that_lost_its_place_is_not_written_there_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said, other: bytes | None
) -> None:
    monkeypatch.setattr(journal_module, "SIZE", 1000)
    path = tmp_path / "events.journal"
    async with publishing(tmp_path) as publisher:
        publish(publisher, 1)
        path.rename(tmp_path / "old")
        if other is not None:
            path.write_bytes(other)
        publish(publisher, *range(2, 50))  # more than fits: the file is to be written anew
        assert (path.read_bytes() if path.exists() else None) == other
    assert "cannot be written" in said()


# -- bad input -------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 5, 13, 40, 60])
async def test_of_a_torn_journal_the_whole_events_are_delivered(
    tmp_path: Path, said: Said, cut: int
) -> None:
    async with publishing(tmp_path) as publisher:
        publish(publisher, 1, 2, 3)
    path = tmp_path / "events.journal"
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    manager = Manager()
    async with publishing(tmp_path) as publisher:
        publish(publisher, 4)  # after the torn record
        async with serving(tmp_path / "events", manager):
            await flush(publisher)
    assert manager.pids == [1, 2, 4]
    assert "the journal is damaged" in said()


async def test_what_is_no_journal_at_all_costs_a_warning(tmp_path: Path, said: Said) -> None:
    path = tmp_path / "events.journal"
    path.write_bytes(os.urandom(100_000))
    async with publishing(tmp_path) as publisher, serving(tmp_path / "events", Manager()):
        publish(publisher, 1)
        await flush(publisher)
    assert "the journal is damaged" in said()
    assert not path.exists()


async def test_a_record_that_is_no_event_is_left_out(tmp_path: Path, said: Said) -> None:
    async with publishing(tmp_path) as publisher:
        publish(publisher, 1)
    with (tmp_path / "events.journal").open("ab") as file:
        file.write(encode(b"\xff\xff\xff"))
    assert waiting(tmp_path) == [1]
    assert "no event" in said()


async def test_a_journal_of_a_tebibyte_is_not_read_whole(tmp_path: Path, said: Said) -> None:
    async with publishing(tmp_path) as publisher:
        publish(publisher, 1)
    os.truncate(tmp_path / "events.journal", 1 << 40)
    async with publishing(tmp_path) as publisher:
        assert publisher.waiting == 1
    assert "the journal is damaged" in said()


@pytest.mark.parametrize("kind", ["directory", "fifo", "link", "device"])
async def test_what_is_no_plain_file_is_left_alone(tmp_path: Path, said: Said, kind: str) -> None:
    path = tmp_path / "events.journal"
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "link":
            (tmp_path / "file").touch()
            path.symlink_to(tmp_path / "file")
        case "device":
            path.symlink_to("/dev/zero")
    manager = Manager()
    async with publishing(tmp_path) as publisher:
        assert "the journal cannot be read" in said()
        publish(publisher, *range(50))
        async with serving(tmp_path / "events", manager):
            await flush(publisher)
    assert manager.pids == list(range(50))
    assert said().count("cannot be written") == 1


@pytest.mark.e2e
async def test_a_full_disk_costs_one_warning_and_is_tried_again(
    disk: Disk, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "RETRY", 0.0)
    manager = Manager()
    async with publishing(disk.path) as publisher:
        publish(publisher, 1, 2)
        disk.fill()
        publish(publisher, *range(3, 300))
        assert said().count("the journal cannot be written") == 1
        disk.empty()
        with trio.fail_after(20):
            while waiting_count(disk.path) < 299:  # no event has to come for that
                await trio.sleep(0.01)
        async with serving(disk.path / "events", manager):
            await flush(publisher)
        publish(publisher, 300)
        assert waiting_count(disk.path) == 1
    assert manager.pids == list(range(1, 300))


@pytest.mark.e2e
async def test_on_a_full_disk_what_is_acknowledged_is_still_recorded(disk: Disk) -> None:
    first, second = Manager(), Manager()
    async with publishing(disk.path) as publisher:
        publish(publisher, *range(10))
        async with serving(disk.path / "events", first):
            disk.fill()
            with trio.fail_after(20):
                while publisher.waiting > 5:
                    await trio.lowlevel.checkpoint()
        left = publisher.waiting
    assert len(waiting(disk.path)) in (left, left - 1)
    async with publishing(disk.path) as publisher, serving(disk.path / "events", second):
        await flush(publisher)
    assert sorted(set(first.pids + second.pids)) == list(range(10))
    assert len(first.pids + second.pids) <= 11


@pytest.mark.e2e
async def test_on_a_read_only_disk_events_go_on_from_memory(disk: Disk, said: Said) -> None:
    manager = Manager()
    async with serving(disk.path / "events", manager):
        disk.protect()
        async with publishing(disk.path) as publisher:
            for _ in range(3):
                publish(publisher, *range(20))
                await flush(publisher)
        disk.release()
    assert manager.pids == 3 * list(range(20))
    assert said().count("the journal cannot be written") == 1


# -- too much --------------------------------------------------------------------


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


def test_the_lock_of_a_journal_ends_with_its_file_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "events.journal"
    path.touch()
    backlog = Backlog(str(path))
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not backlog.load()
    assert backlog.load()
    backlog.close()


def test_closed_twice_while_its_disk_hangs_it_closes_no_fd_of_the_daemon(tmp_path: Path) -> None:
    """The number of the file's fd is the thread's: here another file may have it."""
    with freezable_disk(tmp_path / "image", tmp_path / "disk") as disk:
        journal = ThreadedJournal(str(disk.path / "journal"))
        first, second = Entry(b"first", is_exit=False), Entry(b"second", is_exit=False)
        journal.write([first], first)
        disk.freeze()
        try:
            journal.write([first, second], second)
            before = os.listdir("/proc/self/fd")
            journal.close(remove=False)
            journal.close(remove=False)
            assert os.listdir("/proc/self/fd") == before
        finally:
            disk.thaw()
