"""Signals, pause, limits and numbers of a detached container."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.ctr import RUNTIME, Ctr
from tests.e2e.image import make_rootfs
from tests.e2e.waiting import wait_until

pytestmark = pytest.mark.e2e
SCENARIO = "Life, signals, limits"
COUNT = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.05; done"


def test_a_detached_container_is_killed_and_deleted(ctr: Ctr) -> None:
    name = ctr.start("sleep", "1000")
    assert ctr.state(name) == "RUNNING"
    ctr.kill(name)
    ctr.wait_state(name, "STOPPED")
    assert ctr.delete(name) == 137


def test_a_signal_that_is_not_caught_gives_128_and_its_number(ctr: Ctr) -> None:
    # Not as pid 1, for which the kernel drops signals that are not caught.
    script = "sleep 1000 & echo $! > /pid; wait $!; exit $?"
    name = ctr.start("sh", "-c", script)
    wait_until("the pid", lambda: ctr.exec(name, "sh", "-c", "test -s /pid").code == 0)
    # The exec itself may die with the container that it ends.
    assert ctr.exec(name, "sh", "-c", "kill -TERM $(cat /pid)").code in {0, 137}
    ctr.wait_state(name, "STOPPED")
    assert ctr.delete(name) == 143


def test_a_caught_signal_gives_the_containers_own_code(ctr: Ctr) -> None:
    name = ctr.start("sh", "-c", "trap 'exit 42' TERM; touch /ready; while :; do sleep 0.05; done")
    wait_until("the trap", lambda: ctr.exec(name, "test", "-e", "/ready").code == 0)
    ctr.kill(name, "SIGTERM")
    ctr.wait_state(name, "STOPPED")
    assert ctr.delete(name) == 42


def test_a_running_task_is_not_deleted(ctr: Ctr) -> None:
    name = ctr.start("sleep", "1000")
    result = ctr("task", "rm", name)
    assert result.code != 0
    assert ctr.state(name) == "RUNNING"


def test_killing_the_dead_is_not_found(ctr: Ctr) -> None:
    name = ctr.start("true")
    ctr.wait_state(name, "STOPPED")
    result = ctr("task", "kill", "-s", "SIGTERM", name)
    assert result.code != 0
    # A ctr before 2 adds what kind of error it is: "not found".
    assert "process already finished" in result.err
    assert ctr.delete(name) == 0


def test_a_paused_container_stands_still_until_it_is_resumed(ctr: Ctr, tmp_path: Path) -> None:
    log = tmp_path / "log"
    name = ctr.start("sh", "-c", COUNT, flags=("--log-uri", f"file://{log}"))
    wait_until("it counts", lambda: log.exists() and log.stat().st_size > 4)
    ctr.ok("task", "pause", name)
    assert ctr.state(name) == "PAUSED"
    before = log.read_text()
    # Twenty steps' worth of other calls; a container that runs would have counted on.
    for _ in range(20):
        assert ctr.state(name) == "PAUSED"
    assert log.read_text() == before
    ctr.ok("task", "resume", name)
    wait_until("it counts on", lambda: len(log.read_text()) > len(before) + 4)
    assert ctr.state(name) == "RUNNING"


def test_sigkill_ends_a_paused_container(ctr: Ctr) -> None:
    name = ctr.start("sleep", "1000")
    ctr.ok("task", "pause", name)
    assert ctr("task", "exec", "--exec-id", "no", name, "true").code != 0
    ctr.kill(name)
    # With cgroup v1 a frozen process dies once it is thawed.
    ctr("task", "resume", name)
    ctr.wait_state(name, "STOPPED")
    assert ctr.delete(name) == 137


def test_metrics_are_of_the_hosts_cgroup_version(ctr: Ctr) -> None:
    name = ctr.start("sleep", "1000")
    metrics = json.loads(ctr.ok("task", "metrics", "--format", "json", name))
    v2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    used = metrics["memory"]["usage"] if v2 else metrics["memory"]["usage"]["usage"]
    assert used > 0
    assert metrics["pids"]["current"] == 1


def test_children_in_the_hosts_pid_namespace_die_with_init(ctr: Ctr, tmp_path: Path) -> None:
    make_rootfs(tmp_path / "rootfs")
    spec = json.loads(ctr.ok("oci", "spec"))
    name = ctr.new_id()
    spec["root"]["path"] = str(tmp_path / "rootfs")
    spec["process"]["args"] = ["/bin/sh", "-c", "sleep 4321 & echo $$ $!; exit 6"]
    spec["process"]["env"] = ["PATH=/bin"]
    spec["linux"]["namespaces"] = [n for n in spec["linux"]["namespaces"] if n["type"] != "pid"]
    spec["linux"]["cgroupsPath"] = f"/{ctr.containerd.namespace}/{name}"
    (tmp_path / "config.json").write_text(json.dumps(spec))
    flags = ["--rm", "--runtime", RUNTIME, "--config", str(tmp_path / "config.json")]
    result = ctr("run", *flags, name)
    assert result.code == 6, result
    init, child = (int(word) for word in result.text.split())
    assert init != 1
    wait_until("the child is gone", lambda: not alive(child))


def alive(pid: int) -> bool:
    """Return whether ``pid`` runs; a zombie that PID 1 has not reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
