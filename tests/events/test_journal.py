"""Events are on disk, too, and outlive their publisher."""

from __future__ import annotations

import fcntl
from typing import TYPE_CHECKING

import pytest
import trio
import trio.lowlevel

from shim.api.envelope_pb2 import Envelope
from shim.api.events_pb2 import TaskStart
from shim.events import journal as journal_module
from shim.events.backlog import Backlog
from shim.events.encoding import decode, encode
from shim.events.publisher import open_publisher
from tests.events.delivering import (
    Manager,
    flush,
    publish,
    publishing,
    serving,
    source_of,
    waiting,
    waiting_count,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.events.disks import Said


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


def test_the_lock_of_a_journal_ends_with_its_file_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "events.journal"
    path.touch()
    backlog = Backlog(str(path))
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not backlog.load()
    assert backlog.load()
    backlog.close()
