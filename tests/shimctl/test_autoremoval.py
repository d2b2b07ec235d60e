"""``shimctl run --rm -d``: the container is removed when it ends, and by which process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.images.layouts import Layout, busybox
from tests.shimctl.place import RUNTIMES, Place, eventually, open_place
from tests.shimctl.tmux import open_tmux

if TYPE_CHECKING:
    from collections.abc import Iterator

WAITS = "while ! [ -e /tmp/go ]; do sleep 0.05; done; exit 7"


@pytest.fixture(params=["ours", "go"], scope="module")
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with open_place(request.param) as place:
        yield place


def waiting(place: Place, id_: str) -> Path:
    """Run a container with --rm -d until the returned file exists."""
    bundle = place.bundle("sh", "-c", WAITS)
    place.made("run", id_, "--rm", bundle)
    return bundle / "rootfs/tmp/go"


def work_of(place: Place, id_: str) -> Path:
    return place.state / place.namespace / id_


def wait_removed(place: Place, id_: str) -> None:
    eventually(lambda: not work_of(place, id_).exists())
    eventually(lambda: place.left() == [], place.left)


def monitor_of(place: Place, id_: str) -> psutil.Process:
    """Return the process that removes the container at its end.

    After a restart that of the earlier run may not have ended yet.
    """
    marks = (str(work_of(place, id_)), "monitor.main")
    found: list[psutil.Process] = []

    def is_alone() -> bool:
        found[:] = [
            process
            for process in psutil.process_iter(["cmdline"])
            if all(mark in " ".join(process.info["cmdline"] or ()) for mark in marks)
        ]
        return len(found) == 1

    eventually(is_alone, lambda: found)
    return found[0]


def leftovers(place: Place) -> dict[str, str]:
    """Return what ``prune`` names, with its details."""
    return {one["name"]: one["detail"] for one in place.json("prune", "--dry-run")}


def advice(place: Place) -> dict[str, str]:
    """Return what ``doctor`` says of containers."""
    report = json.loads(place.shimctl("doctor", "-o", "json").stdout)
    return {
        one["subject"]: one["text"] for one in report["findings"] if one["area"] == "containers"
    }


def test_a_detached_container_is_removed_when_it_ends(place: Place) -> None:
    go = waiting(place, "short")
    shim = place.json("inspect", "short")["shim"]["pid"]
    before = len(connections(shim))
    with place.begun("wait", "short", stdout=subprocess.DEVNULL) as waiter:
        # It is connected to the shim; later it would find no container.
        eventually(lambda: len(connections(shim)) > before)
        eventually(lambda: psutil.Process(waiter.pid).status() == psutil.STATUS_SLEEPING)
        go.touch()
        assert waiter.wait(60) == 7
    wait_removed(place, "short")
    assert not psutil.pid_exists(shim)
    assert place.done("ps", "-aq", "-n", place.namespace) == ""


def connections(pid: int) -> list[Any]:
    """Return the unix connections of a process, without its listener."""
    return [one for one in psutil.Process(pid).net_connections("unix") if one.status != "LISTEN"]


def test_the_image_of_a_removed_container_is_free_again(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHIMCTL_IMAGES", str(tmp_path / "images"))
    layout = Layout(tmp_path / "layout")
    reference = layout.add("a", busybox(), Cmd=["sleep", "1000"], Env=["PATH=/bin"])
    place.made("run", "imaged", "--rm", reference)
    assert place.json("images")[0]["used_by"] == ["imaged"]
    place.done("stop", "-t", "0", "imaged")
    wait_removed(place, "imaged")
    assert place.json("images")[0]["used_by"] == []
    assert not list((tmp_path / "images/containers").iterdir())


def test_a_created_container_is_removed_when_it_ends(place: Place) -> None:
    bundle = place.bundle("sh", "-c", WAITS)
    place.made("create", "created", "--rm", bundle)
    assert place.json("inspect", "created")["state"]["status"] == "created"
    place.done("start", "created")
    place.done("restart", "-t", "0", "created")
    (bundle / "rootfs/tmp/go").touch()
    wait_removed(place, "created")


def test_a_created_container_that_is_killed_before_its_start_is_removed(place: Place) -> None:
    place.made("create", "unstarted", "--rm", place.bundle("true"))
    place.done("kill", "unstarted", "9")
    wait_removed(place, "unstarted")


def test_a_command_that_removes_it_first_does_no_harm(place: Place) -> None:
    waiting(place, "twice")
    place.done("rm", "-f", "twice")
    wait_removed(place, "twice")


def test_a_container_that_cannot_start_leaves_nothing(place: Place) -> None:
    options = ("-n", place.namespace, "--runtime", RUNTIMES[place.kind], "--name", "wrong")
    done = place.shimctl("run", "--rm", "-d", *options, place.bundle("no-such-program"))
    assert done.returncode == 127
    wait_removed(place, "wrong")


def test_the_monitor_sleeps_until_the_end(place: Place) -> None:
    go = waiting(place, "quiet")
    monitor = monitor_of(place, "quiet")
    eventually(lambda: monitor.status() == psutil.STATUS_SLEEPING)
    wait = Path(f"/proc/{monitor.pid}/wchan")
    eventually(lambda: "poll" in wait.read_text() or wait.read_text() == "0")
    before = monitor.num_ctx_switches()
    assert place.done("ps", "-q", "-n", place.namespace) == "quiet\n"
    assert monitor.num_ctx_switches() == before
    go.touch()
    wait_removed(place, "quiet")
    assert not monitor.is_running() or monitor.status() == psutil.STATUS_ZOMBIE


def test_a_restart_keeps_the_container_and_its_next_end_removes_it(place: Place) -> None:
    go = waiting(place, "again")
    first = monitor_of(place, "again")
    for _ in range(2):
        place.done("restart", "-t", "0", "again")
        assert place.json("state", "again")["status"] == "running"
    eventually(lambda: monitor_of(place, "again").pid != first.pid)
    go.touch()
    wait_removed(place, "again")


def test_a_container_whose_monitor_was_killed_is_named_and_pruned(place: Place) -> None:
    go = waiting(place, "alone")
    name = f"{place.namespace}/alone"
    assert name not in advice(place)
    monitor = monitor_of(place, "alone")
    monitor.kill()
    eventually(lambda: not monitor.is_running() or monitor.status() == psutil.STATUS_ZOMBIE)
    assert advice(place)[name] == "the process that removes it at its end was killed"
    assert name not in leftovers(place)  # it runs
    go.touch()
    assert place.shimctl("wait", "alone").returncode == 7
    assert leftovers(place)[name] == (
        "exit status 7; the process that removes it at its end was killed"
    )
    assert name in place.done("prune", "-f").splitlines()
    wait_removed(place, "alone")


def test_a_removal_that_fails_is_told_and_can_be_repeated(place: Place) -> None:
    go = waiting(place, "mounted")
    name = f"{place.namespace}/mounted"
    point = work_of(place, "mounted") / "mine"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", point], check=True)
    try:
        go.touch()
        eventually((work_of(place, "mounted") / "removal.error").exists)
        eventually(lambda: name in leftovers(place))
        assert "could not be removed at its end" in leftovers(place)[name]
        assert "is still mounted" in advice(place)[name]
    finally:
        subprocess.run(["umount", point], check=True)
    assert name in place.done("prune", "-f").splitlines()
    wait_removed(place, "mounted")


def test_a_container_left_by_the_detach_keys_is_removed_at_its_end(place: Place) -> None:
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts"},
    ]
    bundle = place.bundle("sh", "-c", f"echo up; {WAITS}", mounts=mounts)
    options = f"-n {place.namespace} --runtime {RUNTIMES[place.kind]} --name left"
    names = ("SHIMCTL_STATE", "PYTHONPATH")
    environ = " ".join(f"{name}={place.environ[name]}" for name in names)
    run = " ".join(place.command("run", "--rm", "-t"))
    with open_tmux() as tmux:
        terminal = tmux.open()
        result = terminal.begin(f"env {environ} {run} {options} {bundle}")
        terminal.expect("up\n")
        terminal.type("\x10\x11")
        assert terminal.code(result) == 0
        assert "left keeps running" in terminal.screen()
    assert place.json("state", "left")["status"] == "running"
    (bundle / "rootfs/tmp/go").touch()
    wait_removed(place, "left")


def test_a_killed_client_of_run_rm_is_told(place: Place) -> None:
    bundle = place.bundle("sh", "-c", f"echo up; {WAITS}")
    options = ("-n", place.namespace, "--runtime", RUNTIMES[place.kind], "--name", "front")
    name = f"{place.namespace}/front"
    with place.begun("run", "--rm", *options, bundle, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"up\n"
        assert name not in advice(place)
        os.kill(client.pid, signal.SIGKILL)
        client.communicate()
    assert name in advice(place)
    # A new run has a process that removes it.
    place.done("restart", "-t", "0", "front")
    assert name not in advice(place)
    (bundle / "rootfs/tmp/go").touch()
    wait_removed(place, "front")
