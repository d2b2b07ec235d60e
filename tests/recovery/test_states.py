"""The states of each version of this project can be read, and a changed format has a number."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING

import pytest

from shim.api import task_pb2
from shim.container.bundle import Config
from shim.container.expected import Expected
from shim.container.lifecycle import State
from shim.container.options import Options
from shim.container.process import Process
from shim.container.reservations import Reservations
from shim.container.snapshot import parse
from shim.errors import InvalidError
from shim.events.forwarding import Sending
from shim.linux.fifos import Fd
from shim.recovery.connections import ConnectionRecord
from shim.recovery.deposit import Deposit
from shim.recovery.inherited import KINDS
from shim.recovery.slot import StateSlot
from shim.recovery.turn import Claim
from shim.recovery.versions import WRITTEN, unreadable
from shim.start.profile import Profile
from shim.stdio.kept import Kept
from shim.stdio.keptoverflow import KeptOverflowPipeRelay, Stages
from shim.stdio.spool import Overflow
from shim.ttrpc.callstate import CallState
from shim.version import VERSION
from tests.recovery import states
from tests.recovery.states import FILES, STORED

if TYPE_CHECKING:
    from trio.testing import MockClock

VERSIONS = sorted(path.name for path in STORED.iterdir())


@pytest.fixture(params=VERSIONS)
def stored(request: pytest.FixtureRequest) -> dict[str, str]:
    """Return the files of one version."""
    return states.read(request.param)


async def test_this_version_writes_what_is_stored_for_it() -> None:
    """If it does not, the number in ``shim.recovery.versions`` may have to be raised.

    CONTRIBUTING.md describes that; then run ``python -m tests.recovery.states --write``.
    """
    assert await states.written() == states.read(VERSION)


def test_every_file_belongs_to_a_kind_of_state(stored: dict[str, str]) -> None:
    kinds = json.loads(stored["versions.json"])
    names = {"versions.json"}.union(*(FILES[kind] for kind in kinds))
    assert stored.keys() <= names


async def test_states_with_the_same_number_have_the_same_format(stored: dict[str, str]) -> None:
    """Otherwise a shim of that version would move, and then not be continued."""
    written = await states.written()
    for kind, number in json.loads(stored["versions.json"]).items():
        if number == WRITTEN[kind]:
            for name in FILES[kind]:
                assert written[name] == stored[name], f"raise the number of {kind!r}"


def test_a_state_of_each_version_can_be_continued(stored: dict[str, str]) -> None:
    assert unreadable(json.loads(stored["versions.json"])) == ""


def test_the_settings_of_each_version_are_read(stored: dict[str, str]) -> None:
    assert Profile.decode(stored["daemon.json"].encode()).encode() == states.PROFILE.encode()


def test_a_container_of_each_version_is_read(stored: dict[str, str]) -> None:
    snapshot = parse(stored["container.json"].encode())
    constants = snapshot.constants
    assert constants is not None
    assert task_pb2.CreateTaskRequest.FromString(constants.request) == states.REQUEST
    assert Config(**constants.config) == states.CONFIG
    assert Options(**constants.options) == states.OPTIONS
    assert (snapshot.doing, snapshot.pending) == ("Pause", b"an event")
    assert snapshot.deleted == {"deleted": states.EXIT}
    assert snapshot.cgroup == states.CGROUP.directories
    assert snapshot.oom == states.CGROUP.oom_count
    assert snapshot.existed == ("/sys/fs/cgroup/pod",)
    init, *execs = (Process.restored(one) for one in (snapshot.init, *snapshot.execs))
    assert (init.id, init.pid, init.state, init.exit) == ("", 100, State.RUNNING, None)
    assert init.spec.stdout == f"{states.DIRECTORY}/out"
    added, ended, unknown, log, tty = execs
    assert (added.id, added.pid, added.state, added.doing) == ("added", 0, State.CREATED, "Start")
    assert added.spec.stdin == f"{states.DIRECTORY}/in"
    assert added.spec.terminal
    for process, exit_ in ((ended, states.EXIT), (unknown, states.UNKNOWN)):
        assert (process.state, process.exit) == (State.STOPPED, exit_)
    assert [one.stdin_closed for one in snapshot.execs] == [False, True, False, False, False]
    assert (log.id, tty.id) == ("log", "tty")


def test_the_streams_of_each_version_are_read(stored: dict[str, str]) -> None:
    snapshot = parse(stored["container.json"].encode())
    added, ended, unknown, log, tty = (one.stdio for one in snapshot.execs)
    assert added is ended is unknown is None
    for stdio in (snapshot.init.stdio, log, tty):
        assert stdio is not None
        assert Overflow.restore(stdio["overflow"]) == states.OVERFLOW
    assert log is not None
    path = f"{states.DIRECTORY}/log"
    assert log["files"] == [{"path": path, "writes": True, "create": True, "role": "file/0"}]
    assert tty is not None
    assert (tty["console"], tty["is_fifo"]) == (f"{states.DIRECTORY}/console", True)


def test_a_create_of_each_version_is_read(stored: dict[str, str]) -> None:
    snapshot = parse(stored["creating.json"].encode())
    assert (snapshot.doing, snapshot.oom, snapshot.existed) == ("Create", None, None)
    assert (snapshot.execs, snapshot.pending, snapshot.cgroup) == ((), b"", {})


async def test_stored_output_of_each_version_is_read(stored: dict[str, str]) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    deposit = Deposit(ours)
    reader, writer = (Fd(number) for number in os.pipe())
    first = Stages.open(Kept(deposit, "io/c1//"), "stdout")
    first.record.write(stored["output.json"].encode())
    os.write(first.intake.number, b"stored and 3 of the rest: new")
    os.write(first.outlet.number, b"stored")
    fds = {
        f"stdout-{role}": os.dup(fd.number)
        for role, fd in zip(("intake", "outlet", "record"), first.fds, strict=True)
    }
    fds["stdout-spool"] = os.memfd_create("stored")
    os.write(fds["stdout-spool"], b"stored")
    kept = Kept(deposit, "io/c1//", fds)
    stages = Stages.take(kept, "stdout")
    assert stages is not None
    relay = KeptOverflowPipeRelay("stdout", reader, writer, stages, overflow=states.OVERFLOW)
    # The bytes of the outlet are in the store, too, and of the intake only the last are not.
    assert (relay._dropped, relay.backlog) == (7, 3 + 6)
    assert os.read(stages.intake.number, 100) == b"new"
    assert relay._store is not None
    relay._store.close()
    for fd in (*first.fds, *stages.fds, reader, writer):
        fd.close()
    deposit.close()
    theirs.close()


async def test_expected_containers_of_each_version_are_read(
    stored: dict[str, str], autojump_clock: MockClock
) -> None:
    expected = Expected.parse(stored["expected.json"].encode())
    assert (expected.joined, expected.cancelled) == ([states.TIME], ["c3"])
    assert expected.ends
    reservations = Reservations(state=expected.reservations).state()
    assert reservations["deadlines"].keys() == {"c2"}
    assert reservations["deadlines"]["c2"] == pytest.approx(states.TIME, abs=1)
    assert [one["id"] for one in reservations["accepted"]] == ["c2"]
    assert reservations["pods"].keys() == {"pod"}
    del autojump_clock


def test_the_sent_event_of_each_version_is_read(stored: dict[str, str]) -> None:
    assert Sending.decode(stored["forwarding.json"].encode()) == states.SENDING


def test_calls_of_each_version_are_read(stored: dict[str, str]) -> None:
    state = CallState.decode(stored["calls.json"].encode())
    assert (state.at, state.unsent) == (17, b"\0\xffunsent")
    assert [call._replace(timeout=None) for call in state.calls] == [
        call._replace(timeout=None) for call in states.CALLS
    ]
    assert [call.timeout is None for call in state.calls] == [True, False]


@pytest.mark.skipif(
    os.sysconf("SC_PAGESIZE") != 4096,
    reason="this machine has pages of another size than 4096 bytes",
)
def test_a_connection_of_each_version_is_read(stored: dict[str, str]) -> None:
    slot = StateSlot(states.file_of(stored["connection.json"]))
    record = ConnectionRecord(-1, slot, Deposit(), ())
    assert record.unhandled == (states.RECEIVED[-states.UNHANDLED :], 5)
    assert record.sent == len(states.SENT) - 4
    record.close()


def test_the_file_of_a_state_of_each_version_is_read(stored: dict[str, str]) -> None:
    with StateSlot(states.file_of(stored["slot.json"])) as slot:
        assert slot.read() == b"the present state"
        assert Claim(count=1).is_valid(slot.fd)
        assert states.CLAIM.has_served(slot.fd)


def test_the_fds_of_each_version_are_known(stored: dict[str, str]) -> None:
    assert set(json.loads(stored["names.json"])) <= set(KINDS)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("daemon.json", Profile.decode),
        ("container.json", parse),
        ("expected.json", Expected.parse),
        ("forwarding.json", Sending.decode),
        ("calls.json", CallState.decode),
    ],
)
def test_a_state_of_a_later_version_is_refused(name: str, read: object) -> None:
    value = json.loads(states.read(VERSION)[name]) | {"version": 99}
    assert callable(read)
    with pytest.raises(InvalidError, match="version 99"):
        read(json.dumps(value).encode())
