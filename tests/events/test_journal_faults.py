"""Events are delivered though their journal is damaged, or its disk full, read-only or hung."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio
import trio.lowlevel

from shim.events import journal as journal_module
from shim.events.encoding import encode
from shim.events.journal import Entry
from shim.events.threadedjournal import ThreadedJournal
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
