"""Faults made on purpose on a real host, and what doctor finds."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from shim.linux import sockets
from shimctl.host import doctor
from shimctl.host.doctor import Finding, Level, bounded, processes, programs, shims, stack
from tests.shimctl.place import PATIENCE, Place, eventually, open_place

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with open_place("ours") as place:
        monkeypatch.setenv("SHIMCTL_STATE", str(place.state))
        yield place


async def test_a_stopped_shim_is_found_within_seconds(place: Place) -> None:
    place.sleeper("c1")
    pid = place.json("inspect", "c1")["shim"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        with trio.fail_after(PATIENCE):
            found = await shims.check()
        assert time.monotonic() - started < PATIENCE / 2
    finally:
        os.kill(pid, signal.SIGCONT)
    (bad,) = [one for one in found if one.subject == f"{place.namespace}/c1"]
    assert bad.level is Level.BROKEN
    assert f"pid {pid} does not answer within 1 s; a signal stopped its process" in bad.text
    assert bad.remedy == f"kill -CONT {pid}"
    assert place.json("inspect", "c1")["state"]["status"] == "running"


async def test_the_stack_of_a_daemon_is_read_and_left_for_its_manager(place: Place) -> None:
    bundle = place.state / place.namespace / "c1"
    place.sleeper("c1")
    pid = place.json("inspect", "c1")["shim"]["pid"]
    seen = await stack.stack_of(pid)
    assert seen.state == "its process runs"
    assert "most recent call first" in seen.text
    assert "trio" in seen.text
    with open(os.open(bundle / "log", os.O_RDONLY | os.O_NONBLOCK), "rb") as log:
        assert b"most recent call first" in (log.read() or b"")
    assert place.json("inspect", "c1")["state"]["status"] == "running"


# Accepts connections and never answers; its log is as a daemon's.
STUCK = """
import faulthandler, os, signal, socket, sys, time
faulthandler.register(signal.SIGUSR1)
server = socket.socket(socket.AF_UNIX); server.bind(sys.argv[1]); server.listen()
os.dup2(os.open(sys.argv[2], os.O_RDWR | os.O_NONBLOCK | os.O_APPEND), 2)
print("ready", flush=True)
def wait_for_ever():
    while True:
        time.sleep(1)
wait_for_ever()
"""


async def test_a_daemon_that_never_answers_is_shown_with_its_stack(tmp_path: Path) -> None:
    address = sockets.socket_address("", "doctor", "stuck")
    path = address.removeprefix("unix://")
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)  # noqa: PTH103, PTH120
    os.mkfifo(tmp_path / "log")
    argv = [sys.executable, "-c", STUCK, path, str(tmp_path / "log")]
    argv += ["-namespace", "doctor", "-id", "stuck", "-address", ""]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:  # noqa: ASYNC220
        try:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            found = await shims.check()
        finally:
            process.kill()
            os.unlink(path)  # noqa: PTH108
    (bad,) = [one for one in found if one.subject == "doctor/stuck"]
    assert bad.level is Level.BROKEN
    assert "wait_for_ever" in bad.detail


async def test_a_dead_socket_is_advice() -> None:
    path = sockets.socket_address("", "doctor", "dead").removeprefix("unix://")
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)  # noqa: PTH103, PTH120
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    try:
        found = await shims.check()
    finally:
        os.unlink(path)  # noqa: PTH108
    (advice,) = [one for one in found if one.subject == "dead sockets"]
    assert advice.level is Level.ADVICE


async def test_a_container_whose_shim_was_killed_is_a_fault(place: Place) -> None:
    place.sleeper("c1")
    os.kill(place.json("inspect", "c1")["shim"]["pid"], signal.SIGKILL)
    eventually(lambda: place.json("ps", "-an", place.namespace)[0]["health"] == "dead")
    found = await shims.check()
    (bad,) = [one for one in found if one.subject == f"{place.namespace}/c1"]
    assert bad.level is Level.BROKEN


async def test_a_version_that_is_never_printed_costs_the_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runc = tmp_path / "runc"
    # A child that keeps the output open, too.
    runc.write_text("#!/bin/sh\ntrap '' TERM\nsleep 1000 &\nwhile :; do sleep 1; done\n")
    runc.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with trio.fail_after(PATIENCE):
        found = {one.subject: one for one in await programs.check()}
    assert found["runc"].level is Level.BROKEN
    assert "did not end within" in found["runc"].text
    assert found["umoci"].level in (Level.OK, Level.NOTE)


async def test_a_check_that_hangs_or_fails_is_a_finding() -> None:
    async def fails() -> list[Finding]:
        raise ValueError("no such thing")

    async def works() -> list[Finding]:
        return [Finding("c", "x", Level.OK, "fine")]

    hangs = partial(bounded.call, partial(time.sleep, 2), 0.05)
    report = await doctor.run_checks({"a": hangs, "b": fails, "c": works})  # type: ignore[dict-item]
    assert [(one.area, one.level) for one in report.findings] == [
        ("a", Level.BROKEN),
        ("b", Level.BROKEN),
        ("c", Level.OK),
    ]
    assert "no such thing" in report.findings[1].text


def test_where_a_process_writes_its_log(tmp_path: Path) -> None:
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(["sleep", "1000"], stderr=log) as to_file,
        subprocess.Popen(["sleep", "1000"], stderr=subprocess.DEVNULL) as to_nothing,
    ):
        try:
            where = processes.stderr_of(to_file.pid)
            assert (where.kind, where.name) == ("file", str(tmp_path / "log"))
            assert processes.stderr_of(to_nothing.pid).kind == "nothing"
        finally:
            to_file.kill()
            to_nothing.kill()
    assert processes.stderr_of(to_file.pid).kind == "unknown"
