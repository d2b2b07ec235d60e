"""docker's description of a running container, and the limits it sets, under each dockerd."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.waiting import wait_until

if TYPE_CHECKING:
    from tests.docker.docker import Docker

pytestmark = pytest.mark.e2e
SCENARIO = "Life, signals, limits"
_V2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()


def test_top_names_every_process_and_no_other(docker: Docker) -> None:
    name = docker.start("sh", "-c", "sleep 4001 & sleep 4002 & wait")
    docker.ok("exec", "-d", name, "sleep", "4003")

    def listed() -> list[str]:
        _title, *lines = docker.ok("top", name, "-o", "pid,args").splitlines()
        return sorted(line.split(maxsplit=1)[1] for line in lines)

    sleeps = [f"sleep {number}" for number in (4001, 4002, 4003)]
    wait_until("all have begun", lambda: listed()[-3:] == sleeps)
    assert listed() == ["sh -c sleep 4001 & sleep 4002 & wait", *sleeps]
    pids = docker.ok("top", name, "-o", "pid").split()[1:]
    assert str(docker.pid(name)) in pids
    assert len(pids) == 4


def test_stats_give_memory_processes_and_the_limit(docker: Docker) -> None:
    name = docker.start("sleep", "1000", flags=("--memory", "64m"))
    answer = json.loads(docker.ok("stats", "--no-stream", "--format", "{{json .}}", name))
    used, limit = answer["MemUsage"].split(" / ")
    assert limit == "64MiB"
    assert used[0].isdigit()
    assert not used.startswith("0B")
    assert answer["PIDs"] == "1"


def test_update_changes_the_limit_of_a_running_container(docker: Docker) -> None:
    name = docker.start("sleep", "1000", flags=("--memory", "64m", "--memory-swap", "64m"))
    docker.ok("update", "--memory", "32m", "--memory-swap", "32m", "--cpu-shares", "77", name)
    cgroup = f"{docker.dockerd.cgroup_parent}/{docker.inspect(name)['Id']}"
    files = [f"{cgroup}/memory.max"] if _V2 else [f"memory/{cgroup}/memory.limit_in_bytes"]
    assert [Path("/sys/fs/cgroup", file).read_text() for file in files] == [f"{32 << 20}\n"]
    answer = docker.ok("stats", "--no-stream", "--format", "{{.MemUsage}}", name)
    assert answer.endswith("/ 32MiB")


def test_running_out_of_memory_is_told(docker: Docker) -> None:
    name = docker.start("tail", "/dev/zero", flags=("--memory", "16m", "--memory-swap", "16m"))
    assert docker.wait_exit(name) == 137
    assert docker.state(name)["OOMKilled"]


def test_running_out_of_memory_in_an_exec_is_told_and_survived(docker: Docker) -> None:
    name = docker.start("sleep", "1000", flags=("--memory", "16m", "--memory-swap", "16m"))
    since = time.time()
    assert docker.exec(name, "tail", "/dev/zero").code == 137
    assert "oom" in [event["Action"] for event in docker.api.events(name, since, time.time())]
    assert docker.state(name)["Running"]


def test_too_many_processes_are_refused_to_the_container_alone(docker: Docker) -> None:
    result = docker.sh("for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; echo $?", "--pids-limit=5")
    assert "can't fork" in result.err
    assert docker.sh("exit 3").code == 3


def test_health_follows_the_check(docker: Docker) -> None:
    def health() -> str:
        return str(docker.state(name)["Health"]["Status"])

    often = ("--health-interval", "200ms", "--health-retries", "1")
    flags = ("--health-cmd", "test ! -e /ill", *often)
    name = docker.start("sleep", "1000", flags=flags)
    wait_until("it is healthy", lambda: health() == "healthy")
    assert docker.exec(name, "touch", "/ill").code == 0
    wait_until("it is ill", lambda: health() == "unhealthy")
    assert docker.exec(name, "rm", "/ill").code == 0
    wait_until("it is well again", lambda: health() == "healthy")
    assert [check["ExitCode"] for check in docker.state(name)["Health"]["Log"]][-1] == 0
