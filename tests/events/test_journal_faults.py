"""Events are delivered though their journal is damaged, or its disk full, read-only or hung."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest
import trio
import trio.lowlevel
from google.protobuf.any_pb2 import Any as AnyMessage

from shim.api.envelope_pb2 import Envelope
from shim.api.events_pb2 import TaskStart
from shim.events import journal as journal_module
from shim.events import threadedjournal
from shim.events.backlog import Backlog
from shim.events.encoding import encode
from shim.events.journal import Entry, Journal
from shim.events.threadedjournal import ThreadedJournal
from tests.e2e.waiting import wait_until
from tests.events.delivering import (
    Manager,
    flush,
    publish,
    publishing,
    serving,
    waiting,
    waiting_count,
)
from tests.frozen import freezable_disk

if TYPE_CHECKING:
    from pathlib import Path

    from tests.events.disks import Disk, Said


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


def delay_loads(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let each journal be read only after the returned event, as on a disk that hangs."""
    responds = threading.Event()
    load = Journal.load

    def load_late(self: Journal) -> list[tuple[int, bytes]]:
        responds.wait(60)
        return load(self)

    monkeypatch.setattr(Journal, "load", load_late)
    monkeypatch.setattr(threadedjournal, "LOAD", 0.01)
    return responds


@pytest.mark.parametrize("own", [False, True], ids=["alone", "with events of its own"])
def test_the_events_of_a_journal_that_is_read_late_are_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    """Only a network file system that hangs delays a read: a function stands in for it."""
    path = str(tmp_path / "events.journal")
    earlier = Backlog(path)
    for pid in (1, 2):
        earlier.append(event(pid))
    earlier.close()
    responds = delay_loads(monkeypatch)
    backlog = Backlog(path, threaded=True)
    with pytest.raises(TimeoutError):
        backlog.load()
    if own:
        backlog.append(event(3))
        backlog.acknowledge()
        backlog.append(event(4))
    responds.set()

    def is_read() -> bool:
        backlog.retry()
        return len(backlog) >= 2 + own

    wait_until("the journal is read", is_read)
    # The delivery of the event 4 may be under way.
    pids = [4, 1, 2] if own else [1, 2]
    assert [pid_of(one) for one in backlog.envelopes()] == pids
    backlog.close()
    wait_until("the journal is written", lambda: journal_module.is_waiting(path))
    later = Backlog(path)
    wait_until("the journal is closed", later.load)
    assert [pid_of(one) for one in later.envelopes()] == pids
    later.close()


def test_a_journal_that_is_not_read_yet_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.journal"
    earlier = Backlog(str(path))
    earlier.append(event(1))
    earlier.close()
    responds = delay_loads(monkeypatch)
    monkeypatch.setattr(threadedjournal, "CLOSE", 0.01)
    threads = len(os.listdir("/proc/self/task"))
    backlog = Backlog(str(path), threaded=True)
    with pytest.raises(TimeoutError):
        backlog.load()
    backlog.close()
    responds.set()
    wait_until("the thread ends", lambda: len(os.listdir("/proc/self/task")) == threads)
    later = Backlog(str(path))
    assert later.load()
    assert [pid_of(one) for one in later.envelopes()] == [1]
    later.close()


def event(pid: int) -> Envelope:
    value = AnyMessage(value=TaskStart(pid=pid).SerializeToString())
    return Envelope(namespace="ns", event=value)


def pid_of(envelope: Envelope) -> int:
    return TaskStart.FromString(envelope.event.value).pid
