"""The fork server killed, hung, foreign or out of processes: never trusted unseen."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import trio

from shim.api.task_pb2 import ShutdownRequest
from shim.errors import UnavailableError
from shim.start import launcher
from shim.start.server import Server as ForkServer
from shim.ttrpc.client import ConnectionLostError
from tests.e2e.waiting import PATIENCE, wait_until
from tests.loops import turns
from tests.process.rig import wait_gone
from tests.process.servers import ROOT, Server, daemons_of, open_launcher, parent_of

# The moments of a start at which a process is killed.
MOMENTS = turns(6, 12)


async def moments(server: Server) -> list[float]:
    """Leave a fork server behind; return moments, in seconds, spread over a start with it."""
    for name in ("first", "timed"):
        began = trio.current_time()
        daemon = await server.start(server.rig.bundle(name, "true"))
        took = trio.current_time() - began
        await (await server.rig.connect()).Shutdown(ShutdownRequest(), timeout=5)
        await wait_gone([daemon])
        await server.wait_up()
    return [took * number / MOMENTS for number in range(MOMENTS)]


@pytest.mark.parametrize("spare", [False, True])
async def test_a_server_killed_at_any_moment_of_a_start_costs_nothing(
    server: Server, spare: bool
) -> None:
    """At any moment, every start results in one daemon that works."""
    daemons = []
    for attempt, moment in enumerate(await moments(server)):
        bundle = server.rig.bundle(f"c{attempt}", "true")
        if server.ask(b"status") is None:
            # The last one was shot after it had served: another process starts a new one.
            daemons.append(await server.start(server.rig.bundle(f"again{attempt}", "true")))
            await (await server.rig.connect()).Shutdown(ShutdownRequest(), timeout=5)
        victim = await server.wait_up()
        if spare:
            await server.wait_spare()
        async with trio.open_nursery() as nursery:

            async def shoot(victim: int = victim, moment: float = moment) -> None:
                await trio.sleep(moment)
                os.kill(victim, signal.SIGKILL)

            nursery.start_soon(shoot)
            done = await trio.to_thread.run_sync(server.launch, bundle, "start")
        assert done.returncode == 0, done.stderr
        server.rig.address = done.stdout.decode()
        server.rig.daemons.clear()
        task = await server.rig.connect()
        daemons.append(server.rig.daemons[0])
        await task.Shutdown(ShutdownRequest(), timeout=5)
    await wait_gone(daemons)
    with trio.fail_after(15 * PATIENCE):
        while daemons_of(server.rig.root / "manager"):
            await trio.sleep(0.05)


@pytest.mark.parametrize("spare", [False, True])
async def test_a_launcher_killed_at_any_moment_leaves_no_orphan(
    server: Server, spare: bool
) -> None:
    for attempt, moment in enumerate(await moments(server)):
        bundle = server.rig.bundle(f"c{attempt}", "true")
        if spare:
            await server.wait_spare()
        launch = await open_launcher(bundle, server.rig.root / "orphans")
        await trio.sleep(moment)
        launch.kill()
        assert launch.stdout is not None
        async with launch.stdout:
            answer = await launch.stdout.receive_some()
        if await launch.wait() == 0:
            assert answer
        if answer:
            # Killed between the answer and its end: the daemon may have seen it, or not.
            server.rig.address = answer.decode()
            with contextlib.suppress(ConnectionLostError, UnavailableError):
                task = await server.rig.connect()
                await task.Shutdown(ShutdownRequest(), timeout=5)
    with trio.fail_after(15 * PATIENCE):
        while daemons_of(server.rig.root / "orphans"):
            await trio.sleep(0.05)


@pytest.mark.parametrize("mode", [0o755, 0o777])
async def test_a_directory_with_another_mode_costs_speed_and_is_named(
    server: Server, mode: int
) -> None:
    """systemd's RuntimeDirectory= makes it 0755 by default."""
    server.directory.mkdir()
    server.directory.chmod(mode)
    bundle = server.rig.bundle("c1", "true")
    os.mkfifo(bundle / "log")
    keep = os.open(bundle / "log", os.O_RDWR | os.O_NONBLOCK)
    try:
        done = server.launch(bundle, "start")
        assert (done.returncode, done.stderr) == (0, b"")
        server.rig.address = done.stdout.decode()
        await server.rig.connect()
        assert b"others have rights" in os.read(keep, 65536)
    finally:
        os.close(keep)
    assert server.sockets == []
    command = [sys.executable, "-m", "shimctl", "forkserver", "status", "--json"]
    (found,) = json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE).stdout)
    assert (found["health"], found["ours"]) == ("untrusted", True)
    assert f"chmod go= {server.directory}" in found["problem"]


@pytest.mark.parametrize("what", ["directory", "socket"])
async def test_a_socket_others_could_have_put_there_is_not_trusted(
    server: Server, what: str
) -> None:
    bundles = [server.rig.bundle(f"c{i}", "true") for i in range(2)]
    await server.start(bundles[0])
    pid = await server.wait_up()
    (path,) = server.sockets
    target = server.directory if what == "directory" else path
    mode = target.stat().st_mode & 0o777
    target.chmod(mode | 0o002)
    os.mkfifo(bundles[1] / "log")
    keep = os.open(bundles[1] / "log", os.O_RDWR | os.O_NONBLOCK)
    try:
        daemon = await server.start(bundles[1])
        assert parent_of(daemon) != pid
        assert os.read(keep, 65536).count(b"others have rights") == 1
    finally:
        os.close(keep)
        target.chmod(mode)


async def test_a_socket_of_another_user_is_not_trusted(server: Server) -> None:
    bundles = [server.rig.bundle(f"c{i}", "true") for i in range(2)]
    await server.start(bundles[0])
    pid = await server.wait_up()
    (path,) = server.sockets
    os.chown(path, 65534, 65534)
    try:
        assert parent_of(await server.start(bundles[1])) != pid
    finally:
        os.chown(path, 0, 0)


async def test_a_server_that_never_answers_is_given_up(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listener that accepts no connection delays a start by a second at most."""
    server.directory.mkdir(mode=0o700)
    path = server.rig.root / "probe"
    script = f"from shim.start.identity import *; open({str(path)!r}, 'w').write(socket_path())"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
    name = path.read_text()
    kind = socket.SOCK_SEQPACKET
    with (
        socket.socket(socket.AF_UNIX, kind) as deaf,
        socket.socket(socket.AF_UNIX, kind) as filler,
    ):
        deaf.bind(name)
        os.chmod(name, 0o600)  # noqa: PTH101
        deaf.listen(0)
        filler.connect(name)
        assert launcher.is_enabled()
        with trio.fail_after(20):
            await server.start(server.rig.bundle("c1", "true"))


def _removed(group: Path) -> bool:
    """Move the processes of a cgroup to its parent, and remove it once they have left it."""
    try:
        for member in (group / "cgroup.procs").read_text().split():
            (group.parent / "cgroup.procs").write_text(member)
        group.rmdir()
    except OSError:
        return False  # a process was forked meanwhile, or is ending
    return True


async def test_a_fork_that_fails_costs_the_caller_nothing_but_time(server: Server) -> None:
    """The pids limit of the server's cgroup is what makes fork fail in practice."""
    bundles = [server.rig.bundle(f"c{i}", "true") for i in range(3)]
    groups = Path("/sys/fs/cgroup/pids")
    if not groups.exists():  # cgroup v2
        groups = Path("/sys/fs/cgroup")
    group = groups / f"{server.rig.root.name}-limit"
    group.mkdir()
    os.mkfifo(bundles[1] / "log")
    keep = os.open(bundles[1] / "log", os.O_RDWR | os.O_NONBLOCK)
    try:
        await server.start(bundles[0])
        pid = await server.wait_up()
        (group / "cgroup.procs").write_text(str(pid))
        (group / "pids.max").write_text("1")
        server.launch(bundles[1], "-info")  # takes the child there may be already
        assert parent_of(await server.start(bundles[1])) != pid
        assert b"cannot fork: Resource temporarily unavailable" in os.read(keep, 65536)
        (group / "pids.max").write_text("max")
        assert parent_of(await server.start(bundles[2])) == pid
    finally:
        os.close(keep)
        server.ask(b"stop")
        wait_until("the group is removed", partial(_removed, group))


async def test_a_caller_that_says_nothing_or_nonsense_harms_nobody(server: Server) -> None:
    bundles = [server.rig.bundle(f"c{i}", "true") for i in range(2)]
    await server.start(bundles[0])
    pid = await server.wait_up()
    (path,) = server.sockets
    kind = socket.SOCK_SEQPACKET
    silent = socket.socket(socket.AF_UNIX, kind)
    silent.connect(str(path))
    try:
        for data in (b"", b"\0\0\0", b"run\0x", os.urandom(100_000), b"frobnicate"):
            with socket.socket(socket.AF_UNIX, kind) as sock:
                sock.settimeout(5)
                sock.connect(str(path))
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    sock.send(data)
                    assert sock.recv(10) == b""
        assert parent_of(await server.start(bundles[1])) == pid
    finally:
        silent.close()


@pytest.mark.parametrize("foreign", ["nothing", "user", "group"])
def test_a_request_of_another_user_is_not_answered(tmp_path: Path, foreign: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to be another user")
    server = ForkServer(str(tmp_path / "socket"), "name")
    # A socket has the credentials that its process had when it was made.
    user, group = os.geteuid(), os.getegid()
    try:
        if foreign == "group":
            os.setegid(65534)
        elif foreign == "user":
            os.seteuid(65534)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    finally:
        os.seteuid(user)
        os.setegid(group)
    with ours, theirs:
        theirs.setblocking(False)
        theirs.send(b"status")
        assert server._handle_request(ours) is None
        if foreign == "nothing":
            assert json.loads(theirs.recv(4096))["pid"] == os.getpid()
        else:
            with pytest.raises(BlockingIOError):
                theirs.recv(4096)
