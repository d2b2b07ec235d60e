"""containerd dies and comes back; the containers and their shims do not notice."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.e2e.attached import attached
from tests.e2e.ctr import RUNTIME, STOCK, Ctr
from tests.e2e.leftovers import is_shim, processes, sockets
from tests.e2e.test_lifecycle import COUNT, alive
from tests.e2e.waiting import wait_until

pytestmark = pytest.mark.e2e
SCENARIO = "Restart of the manager"


def test_containers_live_on_when_containerd_is_killed(ctr: Ctr, tmp_path: Path) -> None:
    log = tmp_path / "log"
    name = ctr.start("sh", "-c", COUNT, flags=("--log-uri", f"file://{log}"))
    others = [ctr.start("sleep", "1000") for _ in range(3)]
    pids = {each: ctr.pid(each) for each in [name, *others]}
    shims = shim_pids(ctr)
    ctr.containerd.kill()

    size = log.stat().st_size
    wait_until("output goes on without containerd", lambda: log.stat().st_size > size + 4)
    assert all(alive(pid) for pid in pids.values())

    ctr.containerd.start()
    assert {each: ctr.pid(each) for each in pids} == pids
    assert {ctr.state(each) for each in pids} == {"RUNNING"}
    assert shim_pids(ctr) == shims
    assert ctr.exec(name, "sh", "-c", "echo again; exit 3").code == 3
    size = log.stat().st_size
    wait_until("output goes on with containerd", lambda: log.stat().st_size > size + 4)
    for each in pids:
        ctr.kill(each)
        ctr.wait_state(each, "STOPPED")
        assert ctr.delete(each) == 137
    numbers = [int(line) for line in log.read_text().split()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_the_exit_code_arrives_at_a_client_of_the_new_containerd(ctr: Ctr) -> None:
    name = ctr.start("sh", "-c", "while ! test -e /go; do sleep 0.05; done; exit 23")
    ctr.containerd.restart()
    with attached(ctr, "task", "attach", name) as process:
        ctr.touch(name, "/go")
        assert process.wait(30) == 23
    assert ctr.state(name) is None  # `attach` deletes the task that it saw end


def test_an_exit_while_containerd_is_away_is_not_forgotten(ctr: Ctr) -> None:
    name = ctr.start("sh", "-c", "while ! test -e /go; do sleep 0.05; done; exit 24")
    pid = ctr.pid(name)
    ctr.containerd.kill()
    Path(f"/proc/{pid}/root/go").touch()
    wait_until("it has ended", lambda: not alive(pid))
    ctr.containerd.start()
    assert ctr.state(name) == "STOPPED"
    assert ctr.delete(name) == 24


def test_a_client_that_went_away_costs_the_container_nothing(ctr: Ctr) -> None:
    script = "i=0; while test $i -lt 50; do i=$((i+1)); echo line $i; sleep 0.02; done; exit 25"
    name = ctr.start("sh", "-c", script)
    with attached(ctr, "task", "attach", name):
        pass  # killed at once; no client reads the fifos after that
    ctr.wait_state(name, "STOPPED")
    assert ctr.delete(name) == 25


def test_after_a_restart_a_new_client_reads_on(ctr: Ctr) -> None:
    name = ctr.start("sh", "-c", "while ! test -e /go; do sleep 0.05; done; echo read on; exit 26")
    ctr.containerd.restart()
    with attached(ctr, "task", "attach", name) as process:
        assert process.stdout is not None
        ctr.touch(name, "/go")
        assert process.stdout.readline() == b"read on\n"
        assert process.wait(30) == 26


def test_a_paused_container_is_paused_after_a_restart(ctr: Ctr) -> None:
    name = ctr.start("sleep", "1000")
    ctr.ok("task", "pause", name)
    ctr.containerd.restart()
    assert ctr.state(name) == "PAUSED"
    ctr.ok("task", "resume", name)
    assert ctr.exec(name, "echo", "back").text == "back\n"


def test_an_exec_runs_on_and_its_code_is_known_after_a_restart(ctr: Ctr) -> None:
    name = ctr.start("sleep", "1000")
    script = "while ! test -e /go; do sleep 0.05; done; exit 31"
    ctr.exec_detached(name, "held", "sh", "-c", script)
    ctr.exec_detached(name, "gone", "sh", "-c", script.replace("/go", "/away"))
    pid = ctr.pid(name)
    ctr.containerd.kill()
    Path(f"/proc/{pid}/root/away").touch()
    ctr.containerd.start()
    listing = ctr.ok("task", "ps", name)
    assert "held" in listing
    assert "must be stopped" in ctr("task", "rm", "--exec-id", "held", name).err
    ctr.touch(name, "/go")
    assert ctr.wait_exec(name, "held") == 31
    assert ctr.wait_exec(name, "gone") == 31


def test_a_container_paused_or_killed_while_containerd_restarts_often(ctr: Ctr) -> None:
    name = ctr.start("sleep", "1000")
    pid = ctr.pid(name)
    for verb, state in (("pause", "PAUSED"), ("resume", "RUNNING"), ("pause", "PAUSED")):
        ctr.ok("task", verb, name)
        ctr.containerd.restart()
        assert (ctr.state(name), ctr.pid(name)) == (state, pid)
    ctr.kill(name)
    ctr("task", "resume", name)  # with cgroup v1 a frozen process dies once it is thawed
    ctr.wait_state(name, "STOPPED")
    ctr.containerd.restart()
    assert ctr.state(name) == "STOPPED"
    assert ctr.delete(name) == 137


def test_a_pod_has_one_shim_and_both_outlive_containerd(ctr: Ctr) -> None:
    group = ("--annotation", f"io.containerd.runc.v2.group={ctr.new_id('pod')}")
    script = "while ! test -e /go; do sleep 0.05; done; exit 27"
    first, second = (ctr.start("sh", "-c", script, flags=group) for _ in range(2))
    shims = shim_pids(ctr)
    assert len(shims) == 1
    ctr.containerd.restart()
    assert [ctr.state(name) for name in (first, second)] == ["RUNNING", "RUNNING"]
    ctr.touch(first, "/go")
    ctr.wait_state(first, "STOPPED")
    assert ctr.delete(first) == 27
    ctr.containerd.restart()
    assert shim_pids(ctr) == shims
    ctr.touch(second, "/go")
    ctr.wait_state(second, "STOPPED")
    assert ctr.delete(second) == 27


@pytest.mark.mortal
def test_a_killed_shim_takes_its_container_along_and_leaves_nothing(ctr: Ctr) -> None:
    name = ctr.start("sleep", "1000", flags=("--null-io",))
    pid = ctr.pid(name)
    for shim in shim_pids(ctr):
        os.kill(shim, signal.SIGKILL)
    wait_until("the container is dead", lambda: not alive(pid))
    wait_until("containerd has cleaned up", lambda: ctr.state(name) in {None, "STOPPED"})
    ctr("task", "rm", name)  # not needed, but allowed
    ctr.ok("c", "rm", name)
    remove_stock_sockets(ctr)


@pytest.mark.mortal
def test_a_shim_killed_while_containerd_is_away_leaves_nothing(ctr: Ctr) -> None:
    name = ctr.start("sleep", "1000", flags=("--null-io",))
    pid, shims = ctr.pid(name), shim_pids(ctr)
    ctr.containerd.kill()
    for shim in shims:
        os.kill(shim, signal.SIGKILL)
    ctr.containerd.start()
    wait_until("the container is dead", lambda: not alive(pid))
    ctr.ok("c", "rm", name)
    remove_stock_sockets(ctr)


def remove_stock_sockets(ctr: Ctr) -> None:
    """Remove the socket of a killed daemon, which the stock shim's `delete` leaves."""
    if RUNTIME == STOCK:
        daemon = ctr.containerd
        for path in sockets(str(daemon.address), daemon.namespace, ctr.ids):
            path.unlink()


def shim_pids(ctr: Ctr) -> set[int]:
    """Find the shims of the tests' containers: what works in a bundle, on the host."""
    daemon = ctr.containerd
    known = {daemon.pid} if daemon.running else set()
    return {
        pid
        for pid, line in processes(str(daemon.root), daemon.namespace, known)
        if str(daemon.address) in line and is_shim(line)
    }
