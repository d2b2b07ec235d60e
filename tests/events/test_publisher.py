"""Events reach a manager in order, and wait for one that is away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from grpclib.const import Status

from shim.api.events_pb2 import TaskDelete, TaskExit, TaskStart
from shim.events import backlog
from shim.events.publisher import is_on_disk, open_publisher
from shim.events.topics import TOPICS, topic_of
from tests.events.delivering import (
    Manager,
    deliver_two,
    serving,
)
from tests.events.disks import mounted

if TYPE_CHECKING:
    from pathlib import Path


async def test_events_arrive_in_the_order_they_happened(tmp_path: Path) -> None:
    manager = Manager()
    path = tmp_path / "events"
    async with serving(path, manager), open_publisher(str(path), "ns") as publisher:
        for pid in range(500):
            publisher.open_source("").publish(TaskStart(container_id="c1", pid=pid))
        with trio.fail_after(20):
            await publisher.flush()
    assert manager.pids == list(range(500))


async def test_an_envelope_is_what_containerds_exchange_accepts(tmp_path: Path) -> None:
    manager = Manager()
    path = tmp_path / "events"
    async with serving(path, manager), open_publisher(f"unix://{path}", "ns") as publisher:
        publisher.open_source("").publish(TaskStart(container_id="c1", pid=7))
        with trio.fail_after(20):
            await publisher.flush()
    (envelope,) = manager.got
    assert (envelope.namespace, envelope.topic) == ("ns", "/tasks/start")
    assert envelope.event.type_url == "containerd.events.TaskStart"
    assert envelope.timestamp.seconds > 0


async def test_a_manager_that_comes_late_misses_nothing(tmp_path: Path) -> None:
    manager = Manager()
    path = tmp_path / "events"
    async with open_publisher(str(path), "ns") as publisher:
        for pid in range(20):
            publisher.open_source("").publish(TaskStart(pid=pid))
        async with serving(path, manager):
            with trio.fail_after(20):
                await publisher.flush()
    assert manager.pids == list(range(20))


async def test_a_manager_that_restarts_misses_nothing(tmp_path: Path) -> None:
    first, second = Manager(), Manager()
    path = tmp_path / "events"
    async with open_publisher(str(path), "ns") as publisher:
        for manager, pids in ((first, range(5)), (second, range(5, 10))):
            async with serving(path, manager):
                for pid in pids:
                    publisher.open_source("").publish(TaskStart(pid=pid))
                with trio.fail_after(20):
                    await publisher.flush()
    assert first.pids + second.pids == list(range(10))


async def test_an_event_is_sent_again_until_it_is_acknowledged(tmp_path: Path) -> None:
    manager = Manager(refuse=3)
    path = tmp_path / "events"
    await deliver_two(path, manager)
    assert manager.pids == [1, 2]
    assert manager.calls == 5


@pytest.mark.parametrize("status", [Status.INVALID_ARGUMENT, Status.UNIMPLEMENTED])
async def test_an_event_nobody_will_ever_accept_holds_up_no_other(
    tmp_path: Path, status: Status
) -> None:
    manager = Manager(refuse=1, status=status)
    path = tmp_path / "events"
    await deliver_two(path, manager)
    assert manager.pids == [2]


async def test_without_an_address_events_are_nobodys_business() -> None:
    async with open_publisher("", "ns") as publisher:
        publisher.open_source("").publish(TaskStart())
        await publisher.flush()


async def test_without_any_event_a_flush_returns_at_once(tmp_path: Path) -> None:
    async with open_publisher(str(tmp_path / "events"), "ns") as publisher:
        with trio.fail_after(20):
            await publisher.flush()


@pytest.mark.e2e
def test_a_journal_may_wait_for_a_disk_unless_it_is_in_memory(tmp_path: Path) -> None:
    with mounted(tmp_path / "memory") as memory:
        assert not is_on_disk(f"{memory.path}/events.journal")
    assert is_on_disk("/proc/events.journal")  # any other file system
    assert not is_on_disk("")


async def test_when_the_queue_is_full_exits_are_the_last_to_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "LIMIT", 3)
    manager = Manager()
    path = tmp_path / "events"
    async with open_publisher(str(path), "ns") as publisher:
        for event in (TaskStart(pid=1), TaskExit(pid=1), TaskStart(pid=2), TaskDelete(pid=1)):
            publisher.open_source("").publish(event)
        publisher.open_source("").publish(TaskExit(pid=2))
        async with serving(path, manager):
            with trio.fail_after(20):
                await publisher.flush()
    assert [e.topic for e in manager.got] == ["/tasks/start", "/tasks/exit", "/tasks/exit"]


def test_every_topic_begins_with_a_slash() -> None:
    assert all(topic.startswith("/tasks/") for topic in TOPICS.values())
    assert topic_of(TaskExit()) == "/tasks/exit"
