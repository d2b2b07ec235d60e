"""Fork servers from outside: seen, ended and started, with real ones and real daemons."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from shim import names
from shim.api.task_pb2 import KillRequest, WaitRequest
from shim.start import identity
from tests.e2e.waiting import PATIENCE
from tests.process.rig import alive, wait_gone
from tests.process.servers import ROOT, parent_of
from tests.process.survival import daemon_of, enable
from tests.shimctl.shims import Shims, open_shims
from tests.shimctl.tool import called

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

EXAMPLE = ROOT / "examples/systemd/containerd-forkserver.conf"


@pytest.fixture
async def shims(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shims]:
    async with open_shims(monkeypatch) as shims:
        yield shims


def ask(shims: Shims, *args: str) -> Any:
    done = shims.shimctl("forkserver", *args, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@contextmanager
def bound(path: str, *, mode: int = 0o600) -> Iterator[socket.socket]:
    """Be at a socket's path, and leave it there."""
    Path(path).parent.mkdir(mode=0o700, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(path)
        Path(path).chmod(mode)
        sock.listen()
        yield sock


@contextmanager
def sleeping(*prefix: str) -> Iterator[int]:
    """Have a process that does nothing; ``prefix`` has been run when the block begins."""
    command = [*prefix, "sh", "-c", "echo; exec sleep 60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process.pid
        finally:
            process.kill()


async def test_where_there_was_never_a_server_none_is_listed_and_stopping_is_fine(
    shims: Shims,
) -> None:
    assert ask(shims, "status") == []
    assert ask(shims, "stop") == []


async def test_one_that_is_about_to_be_a_server_is_not_listed(shims: Shims) -> None:
    shims.directory.mkdir(mode=0o700)
    (shims.directory / ".warmup-1").mkdir(mode=0o700)
    assert ask(shims, "status") == []


async def test_a_warm_server_is_listed_and_the_first_start_is_its_child(shims: Shims) -> None:
    warmed = ask(shims, "warm")
    assert warmed == {"socket": identity.socket_path(), "pid": warmed["pid"], "started": True}
    daemon = await shims.start(shims.rig.bundle("c1", "true"))
    assert parent_of(daemon) == warmed["pid"]
    (server,) = ask(shims, "status")
    assert server == {
        "socket": warmed["socket"],
        "health": "up",
        "pid": warmed["pid"],
        "daemons": 1,
        "idle": 600.0,
        "ours": True,
        "problem": "",
        "keeps": 0,
        "reports": 0,
    }


async def test_people_see_a_table(shims: Shims) -> None:
    pid = ask(shims, "warm")["pid"]
    lines = shims.shimctl("forkserver", "status").stdout.splitlines()
    numbers = ["SHIMS", "KEEPS", "REPORTS"]
    assert lines[0].split() == ["PID", "STATUS", *numbers, "IDLE", "OURS", "SOCKET", "PROBLEM"]
    assert lines[1].split()[:7] == [str(pid), "up", "0", "0", "0", "600.0s", "yes"]


async def test_a_server_that_was_warmed_keeps_nothing_of_ours(shims: Shims) -> None:
    pid = ask(shims, "warm")["pid"]
    assert os.getsid(pid) == pid
    fds = Path(f"/proc/{pid}/fd")
    assert {os.readlink(fds / n) for n in "012"} == {"/dev/null"}  # noqa: PTH115
    assert os.readlink(f"/proc/{pid}/cwd") == "/"  # noqa: PTH115


async def test_warming_again_finds_the_one_that_is_there(shims: Shims) -> None:
    first = ask(shims, "warm")
    assert ask(shims, "warm") == {**first, "started": False}


async def test_warming_at_once_leaves_one_server(shims: Shims) -> None:
    answers = []

    async def warm() -> None:
        answers.append(await trio.to_thread.run_sync(ask, shims, "warm"))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(warm)
    assert len({answer["pid"] for answer in answers}) == 1
    assert [answer["started"] for answer in answers].count(True) == 1


async def test_stopping_waits_for_the_end_and_the_shims_live_on(shims: Shims) -> None:
    pid = ask(shims, "warm")["pid"]
    daemon = await shims.start(shims.rig.bundle("c1", "true"))
    (stopped,) = ask(shims, "stop")
    assert (stopped["pid"], stopped["health"]) == (pid, "exited")
    assert not alive(pid)
    assert ask(shims, "status") == []
    assert alive(daemon)
    assert parent_of(daemon) != pid
    await shims.rig.connect()  # it answers


async def test_a_stopped_server_stays_for_shims_that_survive_and_for_upgraded_ones(
    shims: Shims, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(names.HOST_FILE_VARIABLE, enable(shims.rig))
    monkeypatch.setenv("CONTAINERD_STATE", str(shims.rig.root))
    first = ask(shims, "warm")
    bundle = shims.rig.bundle("c1", "sleep", "1000")
    daemon = await shims.start(bundle)
    await shims.rig.run(task := await shims.rig.connect(), bundle)
    (stopped,) = ask(shims, "stop")
    assert [stopped[name] for name in ("pid", "health", "daemons")] == [first["pid"], "stopped", 1]
    assert [stopped[name] for name in ("keeps", "reports", "ours")] == [1, 0, False]
    assert stopped["problem"] == (
        "it accepts no starts, still keeps the files of 1 shim, and exits with the last of them"
    )
    assert ask(shims, "status") == ask(shims, "stop") == [stopped]
    assert await daemon_of(task) == daemon
    done = await trio.to_thread.run_sync(shims.shimctl, "upgrade", "--all", "--force")
    assert (done.returncode, done.stderr) == (0, "")
    shims.rig.track(after := await daemon_of(task))
    with trio.fail_after(10 * PATIENCE):  # the daemon that has moved ends after its answer
        while True:
            old, new = sorted(ask(shims, "status"), key=lambda one: bool(one["ours"]))
            if not old["keeps"]:
                break
            await trio.sleep(0.01)
    assert (new["socket"], new["keeps"], parent_of(after)) == (first["socket"], 1, new["pid"])
    assert [old[name] for name in ("pid", "health", "keeps", "reports")] == [
        *(first["pid"], "stopped", 0, 1)
    ]
    assert "still reports the exits of processes of 1 upgraded shim," in old["problem"]
    text = shims.shimctl("doctor", "-o", "wide").stdout
    assert f"pid {first['pid']}: {old['problem']}" in " ".join(text.split())
    await task.Kill(KillRequest(id="c1", signal=9), timeout=10)
    await task.Wait(WaitRequest(id="c1"), timeout=10)
    await wait_gone([first["pid"]])
    assert [one["pid"] for one in ask(shims, "status")] == [new["pid"]]


async def test_a_start_removes_the_socket_of_a_stopped_server_that_was_killed(
    shims: Shims, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(names.HOST_FILE_VARIABLE, enable(shims.rig))
    ask(shims, "warm")
    await shims.start(shims.rig.bundle("c1", "true"))
    (stopped,) = ask(shims, "stop")
    os.kill(stopped["pid"], signal.SIGKILL)
    await wait_gone([stopped["pid"]])
    assert Path(stopped["socket"]).exists()
    assert ask(shims, "status") == []
    ask(shims, "warm")
    assert not Path(stopped["socket"]).exists()


async def test_what_a_killed_server_left_is_stale_and_warming_replaces_it(shims: Shims) -> None:
    first = ask(shims, "warm")
    os.kill(first["pid"], signal.SIGKILL)
    await wait_gone([first["pid"]])
    (server,) = ask(shims, "status")
    assert (server["health"], server["pid"]) == ("stale", 0)
    assert ask(shims, "stop") == []
    second = ask(shims, "warm")
    assert second["started"]
    assert second["socket"] == first["socket"]


async def test_a_socket_that_others_could_have_put_there_is_not_talked_to(shims: Shims) -> None:
    with bound(identity.socket_path(), mode=0o666) as sock:
        sock.setblocking(False)
        (server,) = ask(shims, "status")
        assert server["health"] == "untrusted"
        assert "others have rights" in server["problem"]
        for action in ("stop", "warm"):
            done = shims.shimctl("forkserver", action)
            assert done.returncode == 125
            assert "others have rights" in done.stderr
            assert done.stderr.count("\n") == 1
        with pytest.raises(BlockingIOError):
            sock.accept()
    Path(identity.socket_path()).unlink()


async def test_a_directory_that_others_can_write_to_makes_every_server_suspect(
    shims: Shims,
) -> None:
    ask(shims, "warm")
    shims.directory.chmod(0o777)
    try:
        (server,) = ask(shims, "status")
        assert (server["health"], server["pid"]) == ("untrusted", 0)
    finally:
        shims.directory.chmod(0o700)


@pytest.mark.parametrize("answer", [b"", b"nonsense", b"[]", b"{}", b'{"daemons": {}}'])
async def test_one_that_answers_nonsense_is_told_apart_from_one_that_serves(
    shims: Shims, answer: bytes
) -> None:
    path = identity.socket_path()
    with bound(path) as sock:

        def serve() -> None:
            connection, _ = sock.accept()
            with connection:
                connection.recv(100)
                connection.sendall(answer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, serve)
            (server,) = await trio.to_thread.run_sync(ask, shims, "status")
        assert server["health"] == "silent"
        assert server["problem"]
    Path(path).unlink()


async def test_one_that_hangs_costs_a_bound_and_is_named(shims: Shims) -> None:
    pid = ask(shims, "warm")["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        with trio.fail_after(5 + 5 * PATIENCE):
            done = await trio.to_thread.run_sync(shims.shimctl, "forkserver", "stop")
        assert done.returncode == 125
        assert f"the fork server {pid} did not answer in 5 s; end its process" in done.stderr
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_a_server_is_warmed_in_the_cgroup_of_another_process(shims: Shims) -> None:
    group = group_for(shims.rig.root.name)
    group.mkdir()
    try:
        with sleeping() as other:
            (group / "cgroup.procs").write_text(str(other))
            pid = ask(shims, "warm", "--like", str(other))["pid"]
            theirs = Path(f"/proc/{other}/cgroup").read_text()
            assert Path(f"/proc/{pid}/cgroup").read_text() == theirs
            (server,) = ask(shims, "status")
            assert not server["ours"]
            ask(shims, "stop")
        await wait_empty(group)
    finally:
        group.rmdir()


def group_for(name: str) -> Path:
    """A cgroup below the root of one hierarchy, whichever version this host has."""
    unified = Path("/sys/fs/cgroup")
    pids = unified / "pids"
    return (pids if pids.is_dir() else unified) / f"{name}-like"


async def wait_empty(group: Path) -> None:
    with trio.fail_after(10):
        while (group / "cgroup.procs").read_text():
            await trio.sleep(0.02)


async def test_nobody_can_be_like_a_process_that_is_gone_or_elsewhere(shims: Shims) -> None:
    done = shims.shimctl("forkserver", "warm", "--like", "4194304")
    assert (done.returncode, "there is no process" in done.stderr) == (125, True)
    with sleeping("unshare", "--uts") as other:
        done = shims.shimctl("forkserver", "warm", "--like", str(other))
    assert (done.returncode, "another uts namespace" in done.stderr) == (125, True)
    done = shims.shimctl("forkserver", "stop", "--like", "1")
    assert (done.returncode, "--help" in done.stderr) == (125, True)


async def test_a_server_that_cannot_start_says_why(
    shims: Shims, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TRIO_SHIM_FORKSERVER_DIR", f"{shims.rig.root}/{'x' * 100}")
        done = shims.shimctl("forkserver", "warm")
    assert done.returncode == 125
    assert done.stderr.count("\n") == 1


def test_the_command_line_is_checked_and_explained() -> None:
    assert called("forkserver").returncode == called("forkserver", "dance").returncode == 125
    assert "\n  shimctl forkserver status" in called("forkserver", "--help").stdout


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_understands_the_example(tmp_path: Path) -> None:
    """Its drop-in and a unit that is like containerd's where it matters."""
    unit = tmp_path / "containerd.service"
    unit.write_text("[Service]\nExecStart=/bin/true\nDelegate=yes\nKillMode=process\n")
    dropin = tmp_path / "containerd.service.d/forkserver.conf"
    dropin.parent.mkdir()
    # Verified is also that the program is there.
    dropin.write_text(EXAMPLE.read_text().replace("/usr/local/bin/shimctl", "/bin/true"))

    def verify() -> tuple[int, str]:
        command = ["systemd-analyze", "verify", "--man=no", str(unit)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        ours = [line for line in done.stderr.splitlines() if str(tmp_path) in line]
        return done.returncode, "\n".join(ours)

    assert verify() == (0, "")
    dropin.write_text(f"{dropin.read_text()}ExecStartPost=no/absolute/path\n")
    assert verify() != (0, "")  # it was read
