"""One daemon for several containers of a containerd, each with its own life."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shim.linux.peers import peer_of
from shim.names import SHARE
from shimctl import read_address
from tests.e2e.test_lifecycle import alive
from tests.e2e.waiting import wait_until

if TYPE_CHECKING:
    from tests.e2e.ctr import Ctr

pytestmark = pytest.mark.e2e
SCENARIO = "Several containers in one daemon"
NAMESPACE = ("--annotation", f"{SHARE}=namespace")
HELD = "while ! test -e /go; do sleep 0.05; done; exit {}"


def daemon_of(ctr: Ctr, name: str) -> int:
    """Return the pid of the daemon that listens at the container's address."""
    import socket

    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(read_address(ctr.containerd.bundle(name)).removeprefix("unix://"))
        return peer_of(sock).pid


def test_containers_in_one_daemon_live_and_end_each_for_itself(ctr: Ctr) -> None:
    names = [ctr.start("sh", "-c", HELD.format(30 + i), flags=NAMESPACE) for i in range(4)]
    own = ctr.start("sleep", "1000", flags=("--annotation", f"{SHARE}=pod"))
    assert len({daemon_of(ctr, name) for name in names}) == 1
    assert daemon_of(ctr, own) != daemon_of(ctr, names[0])
    assert ctr.exec(names[1], "sh", "-c", "exit 3").code == 3
    for number, name in enumerate(names[:2]):  # the first one is that of the daemon's start
        ctr.touch(name, "/go")
        ctr.wait_state(name, "STOPPED")
        assert ctr.delete(name) == 30 + number
    assert {ctr.state(name) for name in names[2:]} == {"RUNNING"}
    late = ctr.start("sleep", "1000", flags=NAMESPACE)
    assert daemon_of(ctr, late) == daemon_of(ctr, names[2])
    pid = daemon_of(ctr, late)
    for name in (*names[2:], late):
        ctr.kill(name)
        ctr.wait_state(name, "STOPPED")
        assert ctr.delete(name) == 137
    wait_until("the daemon has ended", lambda: not alive(pid))


def test_a_restarted_containerd_finds_all_of_them(ctr: Ctr) -> None:
    names = [ctr.start("sh", "-c", HELD.format(40 + i), flags=NAMESPACE) for i in range(4)]
    pids = [ctr.pid(name) for name in names]
    daemon = daemon_of(ctr, names[0])
    ctr.containerd.kill()
    Path(f"/proc/{pids[1]}/root/go").touch()
    wait_until("one has ended", lambda: not alive(pids[1]))
    ctr.containerd.start()
    assert [ctr.state(name) for name in names] == ["RUNNING", "STOPPED", "RUNNING", "RUNNING"]
    assert ctr.delete(names[1]) == 41
    late = ctr.start("sleep", "1000", flags=NAMESPACE)
    assert daemon_of(ctr, late) == daemon
    assert [ctr.pid(name) for name in (names[0], *names[2:])] == [pids[0], *pids[2:]]


def test_when_the_daemon_is_killed_each_container_is_told_to_have_ended(ctr: Ctr) -> None:
    # containerd deletes the tasks, so ctr never removes fifos that it made for them.
    flags = (*NAMESPACE, "--null-io")
    names = [ctr.start("sleep", "1000", flags=flags) for _ in range(4)]
    pids = [ctr.pid(name) for name in names]
    os.kill(daemon_of(ctr, names[0]), signal.SIGKILL)
    wait_until("all have ended", lambda: not any(map(alive, pids)))
    wait_until("containerd knows", lambda: all(ctr.state(name) is None for name in names))
    again = ctr.start("sleep", "1000", flags=NAMESPACE)
    assert ctr.state(again) == "RUNNING"
