"""What breaks from outside: containers, shims, clients and bundles, under each dockerd."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.docker.leftovers import shims
from tests.e2e.attached import attached
from tests.e2e.test_lifecycle import COUNT, alive
from tests.e2e.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.docker.docker import Docker

pytestmark = pytest.mark.e2e
SCENARIO = "Failures"


def test_a_container_killed_from_outside_has_137(docker: Docker) -> None:
    name = docker.start("sleep", "1000")
    os.kill(docker.pid(name), signal.SIGKILL)
    assert docker.wait_exit(name) == 137
    assert docker.ok("wait", name) == "137"


@pytest.mark.mortal
@pytest.mark.unshared
def test_a_killed_shim_takes_its_container_along_which_can_be_started_again(
    docker: Docker,
) -> None:
    name, other = (docker.start("sleep", "1000") for _ in range(2))
    pid, [shim] = docker.pid(name), shims(docker, name)
    with attached(docker, "wait", name) as waiting:
        os.kill(shim, signal.SIGKILL)
        assert waiting.communicate(timeout=30)[0] == b"137\n"
    assert docker.wait_exit(name) == 137
    wait_until("the container is dead", lambda: not alive(pid))
    assert docker.state(other)["Running"]
    docker.ok("start", name)
    assert docker.exec(name, "sh", "-c", "exit 3").code == 3
    assert shims(docker, name) != [shim]


@pytest.mark.mortal
def test_a_shim_killed_under_a_restart_policy_is_replaced(docker: Docker) -> None:
    name = docker.start("sleep", "1000", flags=("--restart", "always"))
    pid, [shim] = docker.pid(name), shims(docker, name)
    os.kill(shim, signal.SIGKILL)
    wait_until("it runs again", lambda: docker.pid(name) not in {0, pid})
    assert docker.exec(name, "sh", "-c", "exit 3").code == 3


def test_a_create_that_fails_leaves_nothing_and_can_be_repeated(
    docker: Docker, tmp_path: Path
) -> None:
    # A directory over a file: runc has made half of the container when it finds out.
    args = docker.run_args("-v", f"{tmp_path}:/bin/busybox", "--", "true")
    name = docker.ok("create", *args[1:])
    for _ in range(2):
        result = docker("start", name)
        assert result.code != 0
        assert "not a directory" in result.err
        assert docker.state(name)["Pid"] == 0


def test_a_client_that_is_killed_costs_the_container_nothing(docker: Docker) -> None:
    name = docker.new_name()
    with attached(docker, *docker.run_args("-i", "--name", name, "--", "sh", "-c", COUNT)) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"1\n"
    before = docker.logs(name)
    wait_until("it counts on", lambda: len(docker.logs(name)) > len(before))
    assert docker.exec(name, "sh", "-c", "exit 3").code == 3


def test_an_exec_whose_client_is_killed_does_not_disturb_the_others(docker: Docker) -> None:
    name = docker.start("sleep", "1000")
    with attached(docker, "exec", "-i", name, "sh", "-c", "echo up; exec cat") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
    assert docker.exec(name, "cat", stdin=b"x\n").text == "x\n"
    docker.ok("kill", name)
    assert docker.wait_exit(name) == 137
