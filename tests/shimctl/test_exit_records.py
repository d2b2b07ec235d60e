"""The known facts about a container without its shim: those of its exit record."""

from __future__ import annotations

import os
import re
import signal
import socket
from typing import TYPE_CHECKING

import psutil
import pytest
import trio
import trio.testing

from shim.errors import TimedOutError
from shim.exit import Exit
from shim.records import write_exit
from shimctl.cli.connected import wait_for
from shimctl.discover import Found
from tests.shimctl.place import Place, eventually, open_place

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WHEN = 1_700_000_000_500_000_000  # ns; 2023-11-14 22:13:20.5 UTC


@pytest.fixture
def alone(tmp_path: Path) -> Place:
    """A place without any shim, and the directory of one container in it."""
    place = Place(tmp_path, "ours")
    bundle = place.state / "ns/gone"
    bundle.mkdir(parents=True)
    (bundle / "config.json").write_text("{}")
    (bundle / "address").write_text(f"unix://{tmp_path}/no-socket")
    return place


def write(place: Place, record: Exit) -> None:
    write_exit(str(place.state / "ns/gone"), record)


def test_wait_and_state_answer_from_the_record(alone: Place) -> None:
    write(alone, Exit(pid=42, exit_status=7, exited_at=WHEN))
    done = alone.shimctl("wait", "gone")
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")
    assert alone.shimctl("wait", "--json", "gone").stdout.count("2023-11-14T22:13:20.500000Z") == 1
    state = alone.json("state", "gone")
    assert (state["status"], state["exit_status"], state["pid"]) == ("stopped", 7, 42)
    assert state["exited_at"] == "2023-11-14T22:13:20.500000Z"
    seen = alone.json("inspect", "go")
    assert seen["exited"]["exit_status"] == 7
    assert seen["state"] is None
    assert "no-socket" in seen["problem"]


def test_ps_shows_the_record_too(alone: Place) -> None:
    write(alone, Exit(pid=42, exit_status=7, exited_at=WHEN))
    assert re.search(r" Exited \(7\) .*, no shim ", alone.done("ps", "-a", "-n", "ns"))
    assert "gone" not in alone.done("ps", "-n", "ns")
    [row] = alone.json("ps", "-a", "-n", "ns")
    assert (row["exited"]["exit_status"], row["health"], row["status"]) == (7, "dead", "unknown")


def test_without_a_record_nothing_is_invented(alone: Place) -> None:
    for command in ("wait", "state"):
        done = alone.shimctl(command, "--json", "gone")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
        assert "no-socket" in done.stderr
    assert "Exited" not in alone.done("ps", "-a", "-n", "ns")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', '{"exit_status": -1}', "\0" * 99])
def test_a_broken_record_is_none(alone: Place, text: str) -> None:
    (alone.state / "ns/gone/init.exit").write_text(text)
    done = alone.shimctl("wait", "gone")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
    assert " Dead " in alone.done("ps", "-n", "ns")


def test_a_record_of_not_knowing_is_said_as_that(alone: Place) -> None:
    write(alone, Exit(pid=42, exit_status=255, exited_at=WHEN, reason="somebody reaped it"))
    done = alone.shimctl("wait", "gone")
    assert (done.returncode, done.stdout) == (125, "")
    assert "the exit status of gone is unknown: somebody reaped it" in done.stderr
    assert "Exited (?)" in alone.done("ps", "-a", "-n", "ns")


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with open_place("ours") as place:
        yield place


def kill_shim(place: Place, name: str) -> None:
    pid = place.json("inspect", "-n", place.namespace, name)["shim"]["pid"]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie")


@pytest.mark.e2e
def test_how_a_container_ended_outlives_its_shim(place: Place) -> None:
    inside = ("-n", place.namespace)
    place.made("run", "seven", place.bundle("sh", "-c", "exit 7"))
    assert place.shimctl("wait", *inside, "seven").returncode == 7
    known = place.json("state", *inside, "seven")
    kill_shim(place, "seven")
    assert place.shimctl("wait", *inside, "seven").returncode == 7
    after = place.json("state", *inside, "seven")
    for key in ("status", "exit_status", "exited_at", "pid"):
        assert after[key] == known[key]
    assert re.search(r" Exited \(7\) .*, no shim ", place.done("ps", "-a", *inside))
    gone = place.json("delete", *inside, "seven")
    assert (gone["exit_status"], gone["exited_at"]) == (7, known["exited_at"])


@pytest.mark.e2e
def test_the_end_of_a_container_whose_shim_was_killed_before_it_is_not_invented(
    place: Place,
) -> None:
    inside = ("-n", place.namespace)
    place.sleeper("orphan")
    kill_shim(place, "orphan")
    done = place.shimctl("wait", *inside, "orphan")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
    assert place.json("delete", "-f", *inside, "orphan")["exit_status"] == 137


async def test_a_wait_for_what_never_answers_has_an_end(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(tmp_path / "s"))
        stranger.listen()
        with trio.fail_after(1000), pytest.raises(TimedOutError):
            await wait_for(Found("ns", "odd", f"unix://{tmp_path}/s"))
