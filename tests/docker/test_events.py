"""The order of docker's events, under each dockerd."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.waiting import wait_until

if TYPE_CHECKING:
    from tests.docker.docker import Docker

pytestmark = pytest.mark.e2e
SCENARIO = "Events"


def test_the_life_of_a_container_is_told_in_order(docker: Docker) -> None:
    since = time.time()
    name = docker.start("sleep", "1000")
    assert docker.exec(name, "sh", "-c", "exit 5").code == 5
    docker.ok("pause", name)
    docker.ok("unpause", name)
    docker.ok("kill", name)
    assert docker.wait_exit(name) == 137
    ident = docker.inspect(name)["Id"]
    docker.ok("rm", name)
    told = events(docker, since, ident, "destroy")
    assert [event["Action"].split(":")[0] for event in told] == [
        *("create", "start", "exec_create", "exec_start", "exec_die"),
        *("pause", "unpause", "kill", "die", "destroy"),
    ]
    assert code(told, "exec_die") == "5"
    assert code(told, "die") == "137"


def test_running_out_of_memory_is_told_before_the_death(docker: Docker) -> None:
    since = time.time()
    name = docker.start("tail", "/dev/zero", flags=("--memory", "16m", "--memory-swap", "16m"))
    docker.wait_exit(name)
    told = events(docker, since, docker.inspect(name)["Id"], "die")
    assert [event["Action"] for event in told] == ["create", "start", "oom", "die"]


def test_six_short_lives_at_once_are_each_told_in_order(docker: Docker) -> None:
    def one(number: int) -> str:
        name = docker.start("sh", "-c", f"exit {number}")
        assert docker.ok("wait", name) == str(number)
        return str(docker.inspect(name)["Id"])

    since = time.time()
    with ThreadPoolExecutor(6) as pool:
        for number, ident in enumerate(pool.map(one, range(6))):
            told = events(docker, since, ident, "die")
            assert [event["Action"] for event in told] == ["create", "start", "die"]
            assert code(told, "die") == str(number)


def test_execs_dying_with_their_container_are_told_once(docker: Docker) -> None:
    since = time.time()
    name = docker.start("sleep", "1000")
    for _ in range(3):
        docker.ok("exec", "-d", name, "sleep", "1000")
    docker.ok("kill", name)
    docker.wait_exit(name)
    told = events(docker, since, docker.inspect(name)["Id"], "die")
    actions = [event["Action"].split(":")[0] for event in told]
    assert actions[0] == "create"
    assert actions.count("die") == actions.count("start") == 1
    assert actions.count("exec_start") == 3
    assert actions.count("exec_die") == 3


def events(docker: Docker, since: float, ident: str, last: str) -> list[dict[str, Any]]:
    """Return docker's events of container ``ident`` since ``since``, once there is a
    ``last``.
    """

    def told() -> list[dict[str, Any]]:
        found = docker.api.events(ident, since, time.time())
        return found if any(event["Action"] == last for event in found) else []

    return wait_until(f"docker tells of {last}", told)


def code(told: list[dict[str, Any]], action: str) -> Any:
    return next(e["Actor"]["Attributes"]["exitCode"] for e in told if e["Action"] == action)
