"""Signals, stops, pauses and restarts under each dockerd."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.attached import attached
from tests.e2e.test_lifecycle import COUNT
from tests.e2e.waiting import wait_until

if TYPE_CHECKING:
    from tests.docker.docker import Docker

pytestmark = pytest.mark.e2e
SCENARIO = "Life, signals, limits"
TRAP = "trap 'exit 42' TERM; trap 'echo hup' HUP; echo up; while :; do sleep 0.05; done"


def test_a_killed_container_gives_137_to_who_waits(docker: Docker) -> None:
    name = docker.start("sleep", "1000")
    with attached(docker, "wait", name) as waiting:
        docker.ok("kill", name)
        out, _err = waiting.communicate(timeout=30)
    assert out == b"137\n"
    assert docker.state(name)["ExitCode"] == 137
    assert not docker.state(name)["OOMKilled"]
    assert docker("kill", name).code != 0


def test_a_container_that_listens_is_stopped_with_its_own_code(docker: Docker) -> None:
    name = docker.start("sh", "-c", TRAP)
    wait_until("the traps", lambda: docker.logs(name) == "up")
    docker.ok("kill", "-s", "HUP", name)
    wait_until("the signal is caught", lambda: docker.logs(name) == "up\nhup")
    docker.ok("stop", name)
    assert docker.state(name)["ExitCode"] == 42


def test_one_that_does_not_listen_is_stopped_by_force(docker: Docker) -> None:
    name = docker.start("sleep", "1000")  # separate init: the kernel keeps SIGTERM from it
    docker.ok("stop", "-t", "1", name)
    assert docker.state(name)["ExitCode"] == 137


def test_a_paused_container_stands_still_until_it_goes_on(docker: Docker) -> None:
    name = docker.start("sh", "-c", COUNT)
    wait_until("it counts", lambda: docker.logs(name))
    docker.ok("pause", name)
    assert docker.state(name)["Status"] == "paused"
    wait_until("the log is at rest", lambda: docker.logs(name) == docker.logs(name))
    before = docker.logs(name)
    for _ in range(5):
        assert docker.state(name)["Paused"]
    assert docker.logs(name) == before
    docker.ok("unpause", name)
    wait_until("it counts on", lambda: len(docker.logs(name)) > len(before))
    assert docker.state(name)["Status"] == "running"


def test_a_paused_container_is_killed(docker: Docker) -> None:
    name = docker.start("sleep", "1000")
    docker.ok("pause", name)
    docker("kill", name)
    if docker.state(name)["Status"] == "paused":
        docker("unpause", name)  # with cgroup v1 a frozen process dies once it is thawed
    assert docker.wait_exit(name) == 137


def test_on_failure_starts_it_again_as_often_as_it_says(docker: Docker) -> None:
    flags = ("--restart", "on-failure:2")
    name = docker.start("sh", "-c", "echo x >> /count; cat /count; exit 9", flags=flags)
    wait_until("two restarts", lambda: docker.inspect(name)["RestartCount"] == 2)
    assert docker.wait_exit(name) == 9
    assert docker.logs(name).split() == ["x"] * 6


def test_a_restarted_container_is_another_process(docker: Docker) -> None:
    name = docker.start("sh", "-c", TRAP)
    pid = docker.pid(name)
    docker.ok("restart", "-t", "1", name)
    state = docker.state(name)
    assert state["Running"]
    assert state["Pid"] != pid
    assert docker.exec(name, "true").code == 0


def test_many_containers_are_removed_at_once(docker: Docker) -> None:
    names = [docker.start("sleep", "1000") for _ in range(5)]
    docker.ok("rm", "-f", *names)
    assert docker.ok("ps", "-aq") == ""
