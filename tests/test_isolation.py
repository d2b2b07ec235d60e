"""The isolation of a parallel run's worker from the host and from other workers."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.isolation import PREFIX, STATE, TEMPORARY, Groups, own_groups, sweep, sweep_states

TESTS = Path(__file__).parent
WORKER = str(TESTS / "worker")
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
    pytest.mark.slow,  # each starts workers
]
V1 = Path("/sys/fs/cgroup/freezer/tasks")
needs_v1 = pytest.mark.skipif(not V1.exists(), reason="needs cgroup version 1")


def worker(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def in_worker(script: str) -> str:
    done = worker(WORKER, "sh", "-c", script)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout.strip()


def own_workers() -> list[Path]:
    """Return the cgroups of the workers that were started in our own."""
    return [group for parent in own_groups() for group in parent.glob(f"{PREFIX}*")]


def test_a_worker_sees_no_process_and_no_socket_of_the_host() -> None:
    assert in_worker("ls /proc | grep -c '^[0-9]'") in {"3", "4", "5"}
    assert in_worker("ls /run") == "lock"


def test_what_a_worker_mounts_is_not_mounted_outside(tmp_path: Path) -> None:
    in_worker(f"mount -t tmpfs tmpfs {tmp_path} && touch {tmp_path}/inside")
    assert not list(tmp_path.iterdir())


def test_two_workers_listen_on_one_abstract_socket_and_one_port() -> None:
    code = (
        "import socket; a = socket.socket(socket.AF_UNIX); a.bind(chr(0) + 'isolation');"
        "t = socket.socket(); t.bind(('127.0.0.1', 47_123)); t.listen();"
        "socket.create_connection(('127.0.0.1', 47_123)).close();"
        "print('bound', flush=True); input()"
    )
    command = [WORKER, "python3", "-c", code]
    pipe = subprocess.PIPE
    with (
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as one,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other,
    ):
        assert [
            one.stdout and one.stdout.readline(),
            other.stdout and other.stdout.readline(),
        ] == [
            "bound\n",
            "bound\n",
        ]
        assert [one.communicate("\n", 20)[0], other.communicate("\n", 20)[0]] == ["", ""]
    assert (one.returncode, other.returncode) == (0, 0)


def test_a_worker_takes_its_cgroup_for_the_root_of_each_hierarchy() -> None:
    before = own_workers()
    lines = in_worker("cat /proc/self/cgroup").splitlines()
    for line in lines:
        _, names, path = line.split(":", 2)
        assert path == "/" if names else path in {"/", "/worker"}, line
    mounts = in_worker("cat /proc/self/mountinfo").splitlines()
    groups = [line.split() for line in mounts if " - cgroup" in line]
    assert groups
    assert {fields[3] for fields in groups} == {"/"}
    assert own_workers() == before


@needs_v1
def test_a_group_that_a_worker_makes_is_not_the_hosts_and_goes_with_it() -> None:
    before = own_workers()
    group = "/sys/fs/cgroup/pids/isolation"
    make = f"mkdir -p {group}/below; echo 0 > {group}/cgroup.procs"
    assert in_worker(f"{make}; grep :pids: /proc/self/cgroup").endswith(":pids:/isolation")
    assert not Path(group).exists()
    assert own_workers() == before


@needs_v1
def test_a_worker_with_a_frozen_process_ends() -> None:
    before = own_workers()
    group = "/sys/fs/cgroup/freezer/isolation"
    freeze = f"mkdir {group}; sleep 1000 & echo $! > {group}/cgroup.procs"
    in_worker(f"exec >/dev/null 2>&1; {freeze}; echo FROZEN > {group}/freezer.state")
    assert own_workers() == before


def test_a_worker_runs_in_a_worker() -> None:
    assert in_worker(f"{WORKER} {WORKER} --check; echo $?") == "0"


def test_the_exit_status_is_that_of_the_command() -> None:
    assert worker(WORKER, "sh", "-c", "exit 7").returncode == 7
    assert worker(WORKER, "sh", "-c", "kill -KILL $$").returncode == 128 + signal.SIGKILL


def test_a_command_can_be_interrupted_although_the_caller_cannot() -> None:
    ignoring = f"trap '' INT; exec {WORKER} sh -c 'kill -INT $$; echo not interrupted'"
    done = worker("sh", "-c", ignoring)
    assert (done.returncode, done.stdout) == (128 + signal.SIGINT, "")


def test_an_orphan_is_reaped() -> None:
    orphan = "(sleep 0.01 & echo $! > /run/orphan)"
    wait = "until [ ! -e /proc/$(cat /run/orphan) ]; do sleep 0.01; done"
    assert in_worker(f"{orphan}; {wait}; echo gone") == "gone"


def test_the_directory_of_spools_is_the_workers_own() -> None:
    assert in_worker(f"touch {STATE}/isolation; ls {STATE}") == "isolation"
    assert not Path(STATE, "isolation").exists()


def test_a_worker_that_is_killed_leaves_no_process() -> None:
    read, write = os.pipe()
    with subprocess.Popen(
        [WORKER, "sh", "-c", "echo ready; exec sleep 1000"], stdout=write, pass_fds=(write,)
    ) as process:
        os.close(write)
        assert os.read(read, 6) == b"ready\n"
        process.kill()
    # The pipe ends when the last process that holds it does.
    assert os.read(read, 1) == b""
    os.close(read)
    sweep(own_groups(), young=0)
    assert not [group for group in own_workers() if group.name == f"{PREFIX}{process.pid}"]


def directory_of(worker: int) -> Path:
    """Return the directory in /var/tmp that a worker has mounted, by its outer process."""
    (unshare,) = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
    (inner,) = Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()
    mounts = Path(f"/proc/{inner}/mountinfo").read_text().splitlines()
    # The last mount is its own: a worker that runs in a worker has the other's, too.
    *_, root = [line.split()[3] for line in mounts if line.split()[4] == STATE]
    return Path(TEMPORARY, Path(root).name)


def test_the_directory_of_a_killed_worker_is_removed_and_that_of_a_living_one_is_not() -> None:
    with subprocess.Popen(
        [WORKER, "sh", "-c", "echo ready; exec sleep 1000"], stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.read(6) == b"ready\n"
            state = directory_of(process.pid)
            sweep_states(young=0)
            assert state.exists()
        finally:
            process.kill()
    sweep_states(young=60)
    assert state.exists()
    sweep_states(young=0)
    assert not state.exists()


def test_a_worker_that_is_terminated_removes_its_groups() -> None:
    with subprocess.Popen(
        [WORKER, "sh", "-c", "echo ready; exec sleep 1000"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(6) == b"ready\n"
        process.terminate()
    assert process.returncode == 128 + signal.SIGKILL
    assert not [group for group in own_workers() if group.name == f"{PREFIX}{process.pid}"]


@needs_v1
def test_the_groups_of_a_living_worker_stay() -> None:
    (parent,) = [group for group in own_groups() if "freezer" in group.parts]
    groups = Groups()
    groups.make()
    try:
        sweep([parent], young=0)
        assert (parent / f"{PREFIX}{os.getpid()}").exists()
    finally:
        groups.remove()
    stale = parent / f"{PREFIX}stale"
    (stale / "below").mkdir(parents=True)
    sweep([parent], young=60)
    assert stale.exists()
    sweep([parent], young=0)
    assert not stale.exists()


@needs_v1
def test_without_cgroups_a_worker_shares_the_hosts_and_names_the_reason() -> None:
    shut = "mount -o remount,bind,ro /sys/fs/cgroup/freezer && exec"
    private = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
    done = worker(*private, f"{shut} {WORKER} ls /run")
    assert (done.returncode, done.stdout) == (0, "lock\n")
    assert "sharing the host's cgroups and network" in done.stderr
    assert "Read-only file system" in done.stderr
    done = worker(*private, f"{shut} {WORKER} --check")
    assert done.returncode == 1
    assert "Read-only file system" in done.stderr
