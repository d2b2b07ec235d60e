"""``shimctl stop`` of Docker's containers, with the signal and the time that Docker was given."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.waiting import wait_until
from tests.shimctl import tool

if TYPE_CHECKING:
    import subprocess

    from tests.docker.docker import Docker

pytestmark = pytest.mark.e2e
SCENARIO = "Life, signals, limits"
SCRIPT = "trap '' TERM; trap 'exit 3' USR1; touch /ready; while :; do sleep 0.05; done"


def called(docker: Docker, *argv: str) -> subprocess.CompletedProcess[str]:
    state = str(docker.dockerd.root / "exec/containerd/daemon")
    return tool.shimctl(*argv, "--state", state, "-o", "json")


def shimctl(docker: Docker, *argv: str) -> Any:
    done = called(docker, *argv)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def listener(docker: Docker, *flags: str) -> tuple[str, str]:
    """Start a container that ends on USR1 only; return its name and its id."""
    name = docker.start("sh", "-c", SCRIPT, flags=flags)
    ready = Path(f"/proc/{docker.pid(name)}/root/ready")
    wait_until("the container listens", ready.exists)
    return name, docker.find_ids()[-1]


def test_stop_sends_the_stop_signal_that_docker_was_given(docker: Docker) -> None:
    name, id_ = listener(docker, "--stop-signal", "SIGUSR1")
    stopped = shimctl(docker, "stop", "-t", "30", id_)
    assert (stopped["signal"], stopped["killed"]) == (signal.SIGUSR1, False)
    assert docker.wait_exit(name) == 3


def test_stop_waits_as_long_as_docker_was_told(docker: Docker) -> None:
    name, id_ = listener(docker, "--stop-timeout", "2")
    start = time.monotonic()
    stopped = shimctl(docker, "stop", id_)
    assert 2 <= time.monotonic() - start < 10
    assert (stopped["signal"], stopped["killed"]) == (signal.SIGTERM, True)
    assert docker.wait_exit(name) == 128 + 9


def test_restart_names_the_command_of_docker_which_works(docker: Docker) -> None:
    name, id_ = listener(docker)
    before = docker.pid(name)
    done = called(docker, "restart", id_)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
    assert f"use `docker restart {id_}`" in done.stderr
    assert docker.pid(name) == before
    docker.ok("restart", "-t", "0", id_)
    assert docker.pid(name) != before
