"""containerd is away, or the shim is gone: the events are still published, with the right
values.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shim.records import read_exit
from tests.e2e.managers import EXECUTABLE
from tests.e2e.test_events import subscribed
from tests.e2e.test_lifecycle import alive
from tests.e2e.test_restart import shim_pids
from tests.e2e.waiting import wait_until

if TYPE_CHECKING:
    from tests.e2e.ctr import Ctr

pytestmark = pytest.mark.e2e
SCENARIO = "What outlives containerd and the shim"


@dataclass(frozen=True)
class Gate:
    """The way of the events to containerd, for the shims that are started through it.

    containerd accepts events before any client can have subscribed to them. So a test that
    needs the first events keeps the gate closed until it has subscribed.
    """

    ctr: Ctr
    directory: Path

    @property
    def runtime(self) -> Path:
        """Our executable, with the gate for an address."""
        real = self.ctr.containerd.manager.launcher
        path = self.directory / EXECUTABLE
        path.write_text(f'#!/bin/sh\nTTRPC_ADDRESS={self.link} exec {real} "$@"\n')
        path.chmod(0o755)
        return path

    @property
    def link(self) -> Path:
        return self.ctr.containerd.root / "gate"

    def open(self) -> None:
        self.link.symlink_to(f"{self.ctr.containerd.address}.ttrpc")

    def close(self) -> None:
        """Close it for new connections."""
        self.link.unlink()

    def start(self, *command: str) -> str:
        return self.ctr.start(*command, flags=("--runtime", self.runtime, "--null-io"))


@pytest.fixture
def gate(ctr: Ctr, tmp_path: Path) -> Gate:
    gate = Gate(ctr, tmp_path)
    gate.link.unlink(missing_ok=True)
    gate.open()
    return gate


def held(path: str, code: int) -> tuple[str, ...]:
    return ("sh", "-c", f"while ! test -e {path}; do sleep 0.05; done; exit {code}")


def end_while_away(gate: Gate, name: str) -> None:
    """Kill containerd, then have the execs ``e0`` to ``e4`` and the container end.

    Return when the shim has written the exits and their events: a shim that is killed between
    the two leaves no event.
    """
    root = Path(f"/proc/{gate.ctr.pid(name)}/root")
    bundle = str(gate.ctr.containerd.bundle(name))
    gate.close()
    gate.ctr.containerd.kill()
    for number in range(5):
        (root / f"go{number}").touch()
        wait_until("the exec has ended", lambda n=number: read_exit(bundle, f"e{n}"))  # type: ignore[misc] # mypy knows no default of a lambda
    (root / "go").touch()
    wait_until("the container has ended", lambda: read_exit(bundle))
    journal = Path(bundle, "events.journal")
    wait_until("the events are written", lambda: journal.read_bytes().count(b"/tasks/exit") == 6)


def start_with_execs(gate: Gate) -> str:
    name = gate.start(*held("/go", 7))
    for number in range(5):
        gate.ctr.exec_detached(name, f"e{number}", *held(f"/go{number}", 10 + number))
    return name


ENDS = [*((f"exit e{number}", 10 + number) for number in range(5)), ("exit init", 7)]


def test_what_happened_while_containerd_was_away_arrives_once_and_in_order(gate: Gate) -> None:
    name = start_with_execs(gate)
    end_while_away(gate, name)
    gate.ctr.containerd.start()
    with subscribed(gate.ctr) as subscriber:
        gate.open()
        events = subscriber.until("exit init", name)
        assert gate.ctr.delete(name) == 7
        events += subscriber.until("delete", name)
    told = [(str(event), event.body.get("exit_status", 0)) for event in events]
    assert told == [*ENDS, ("delete", 7)]


@pytest.mark.mortal
def test_a_shim_that_died_while_containerd_was_away_is_spoken_for(gate: Gate) -> None:
    name = start_with_execs(gate)
    end_while_away(gate, name)
    for shim in (shims := shim_pids(gate.ctr)):
        os.kill(shim, signal.SIGKILL)
    wait_until("the shim is dead", lambda: not any(map(alive, shims)))
    gate.ctr.containerd.start()
    assert gate.ctr.state(name) is None
    with subscribed(gate.ctr) as subscriber:
        gate.open()
        events = subscriber.until("exit init", name)
    assert [(str(event), event.body["exit_status"]) for event in events] == ENDS
    wait_until("who told it is gone", lambda: not shim_pids(gate.ctr))
    gate.ctr.ok("c", "rm", name)


@pytest.mark.mortal
def test_a_shim_that_dies_after_its_container_changes_nothing_about_the_code(gate: Gate) -> None:
    ctr = gate.ctr
    with subscribed(ctr) as subscriber:
        name = ctr.start(*held("/go", 7), flags=("--null-io",))
        (shim,) = shim_pids(ctr)
        ctr.touch(name, "/go")
        first = subscriber.until("exit init", name)[-1].body
        assert ctr.state(name) == "STOPPED"
        os.kill(shim, signal.SIGKILL)
        events = subscriber.until("delete", name)
    # containerd publishes the exit itself, from the reply of `delete`.
    assert [str(event) for event in events] == ["exit init", "delete"]
    for event in events:
        fields = ("pid", "exit_status", "exited_at")
        assert [event.body[field] for field in fields] == [first[field] for field in fields]
    ctr("task", "rm", name)
    ctr.ok("c", "rm", name)
