"""The state of a container in its slot: an event is there until the journal has it."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from shim.api.events_pb2 import TaskOOM
from shim.api.task_pb2 import CreateTaskRequest
from shim.container.bundle import Config
from shim.container.cgroup import ContainerCgroup
from shim.container.options import Options
from shim.container.process import Process
from shim.container.saved import SavedState
from shim.container.snapshot import parse
from shim.container.task_events import TaskEvents
from shim.events import journal as journal_module
from shim.events import publisher as publisher_module
from shim.events.backlog import Backlog
from shim.events.publisher import EventPublisher, EventSource
from shim.recovery.deposit import Deposit
from shim.recovery.slot import StateSlot
from shim.stdio.streams import StdioSpec
from tests.recovery.keeper import Keeper

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


class Container:
    """A container's state and events, in a daemon with a keeper."""

    def __init__(self, journal: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.keeper = Keeper(theirs)
        self.deposit = Deposit(ours)
        self.publisher = EventPublisher("", "ns")
        source = self.publisher.open_source(journal)
        assert isinstance(source, EventSource)
        self.source = source
        self.saved = SavedState(
            CreateTaskRequest(id="c1"),
            Config.parse(b"{}"),
            Options(),
            Process("", StdioSpec()),
            {},
            self.deposit,
        )
        self.events = TaskEvents("c1", source, self.saved)
        bundle: Any = None
        self.saved.group = ContainerCgroup("c1", bundle, self.events)

    def pending(self) -> bytes:
        """Return the pending event of the saved state."""
        self.keeper.take()
        slot = StateSlot(os.dup(self.keeper.fds["state/c1"]))
        with slot:
            return parse(slot.read()).pending

    def acknowledge(self) -> None:
        self.source.backlog.acknowledge()

    def close(self) -> None:
        self.publisher.close()
        self.deposit.close()
        self.keeper.close()


@pytest.fixture
async def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Container]:
    # The directory may be on a disk, where a thread would write the journal.
    monkeypatch.setattr(publisher_module, "is_on_disk", lambda journal: False)
    container = Container(str(tmp_path / "events.journal"))
    yield container
    container.close()


def is_known(journal: Path, pending: bytes) -> bool:
    """Return whether a replacement finds that the event ``pending`` is queued already."""
    backlog = Backlog(str(journal))
    backlog.adopt(os.open(journal, os.O_RDWR))
    found = backlog.last_loaded == pending
    backlog.close()
    return found


async def test_an_event_that_a_replacement_finds_in_the_journal_costs_no_second_save(
    container: Container, tmp_path: Path
) -> None:
    for pid in (1, 2):
        container.events.started(pid)
        pending = container.pending()
        assert pending
        assert is_known(tmp_path / "events.journal", pending)
    container.saved.save()
    assert container.pending() == b""


async def test_an_event_leaves_the_state_before_the_journal_forgets_it(
    container: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a replacement publishes it again."""
    monkeypatch.setattr(journal_module, "SLACK", 100)
    for pid in (1, 2):
        container.events.started(pid)
    container.acknowledge()
    pending = container.pending()
    assert is_known(tmp_path / "events.journal", pending)
    container.acknowledge()
    assert (tmp_path / "events.journal").stat().st_size == 0
    assert container.pending() == b""


async def test_an_event_leaves_the_state_before_the_journal_is_rewritten_without_it(
    container: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    container.events.started(1)
    container.acknowledge()
    assert container.pending()
    monkeypatch.setattr(journal_module, "SIZE", 150)
    other = container.source.seal(TaskOOM(container_id="c1"))
    container.source.post(other)
    assert is_known(tmp_path / "events.journal", other)
    assert container.pending() == b""


async def test_an_event_that_the_journal_does_not_take_leaves_the_state_at_once(
    container: Container, tmp_path: Path
) -> None:
    (tmp_path / "events.journal").mkdir()
    container.events.started(1)
    assert container.pending() == b""
    assert len(container.source.backlog) == 1


async def test_a_deleted_container_leaves_no_event_in_its_state(container: Container) -> None:
    container.events.started(1)
    container.pending()
    container.saved.close()
    slot = StateSlot(os.dup(container.keeper.fds["state/c1"]))
    with slot:
        assert parse(slot.read()).pending == b""
