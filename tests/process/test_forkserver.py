"""The warm parent: fast, optional, and ended when idle."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import trio

from shim.api.task_pb2 import DeleteResponse, ShutdownRequest, WaitRequest
from shim.linux import libc
from shim.start import identity
from tests.e2e.waiting import PATIENCE
from tests.loops import turns
from tests.process.rig import alive, wait_gone
from tests.process.servers import (
    LAUNCH,
    ROOT,
    Server,
    children_of,
    open_launcher,
    parent_of,
    state_of,
    take_attributes,
)

PIDFD_GETFD = 438  # the number of the system call.  Source: asm-generic/unistd.h


async def test_the_first_start_makes_a_server_and_every_daemon_is_its_child(
    server: Server,
) -> None:
    bundles = [server.rig.bundle(f"c{i}", "true") for i in range(2)]
    daemons = [await server.start(bundle) for bundle in bundles]
    pid = await server.wait_up()
    assert [parent_of(daemon) for daemon in daemons] == [pid, pid]
    answer = server.ask(b"status")
    assert [answer[name] for name in ("pid", "daemons", "idle")] == [pid, 2, 600.0]


async def test_of_many_first_starts_at_once_all_daemons_come_from_one_server(
    server: Server,
) -> None:
    daemons = await server.start_all(server.rig.bundle(f"c{i}", "true") for i in range(8))
    assert len(daemons) == 8
    pid = await server.wait_up()
    assert {parent_of(daemon) for daemon in daemons} == {pid}
    assert len(server.sockets) == 1


async def test_the_first_daemon_is_no_larger_than_the_later_ones(server: Server) -> None:
    sizes = []
    for number in range(3):
        bundle = server.rig.bundle(f"c{number}", "sleep", "1000")
        daemon = await server.start(bundle, command=LAUNCH)
        await server.rig.run(await server.rig.connect(), bundle)
        sizes.append(kibibytes(daemon, "Private_Dirty"))
    assert sizes[0] <= 1.1 * min(sizes)


async def test_a_server_killed_while_it_is_made_costs_nothing(server: Server) -> None:
    """Every start ends with a shim that works, and one daemon each, whatever the moment."""
    daemons = []
    attempts = turns(6, 12)
    for attempt in range(attempts):
        bundle = server.rig.bundle(f"c{attempt}", "true")
        launch = await open_launcher(bundle, server.rig.root / "manager")
        with trio.fail_after(20 * PATIENCE):
            while not (makers := children_of(launch.pid)):
                await trio.sleep(0.001)
        await trio.sleep(attempt * 0.36 / attempts)  # another moment each time
        for pid in makers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert launch.stdout is not None
        async with launch.stdout:
            answer = await launch.stdout.receive_some()
        assert await launch.wait() == 0
        server.rig.address = answer.decode()
        server.rig.daemons.clear()
        task = await server.rig.connect()
        daemons.append(server.rig.daemons[0])
        await task.Shutdown(ShutdownRequest(), timeout=5)
        if (state := server.ask(b"status")) is not None:
            os.kill(state["pid"], signal.SIGKILL)
            await wait_gone([state["pid"]])
    await wait_gone(daemons)


async def test_a_server_that_is_stopped_removes_its_socket_though_a_child_has_it(
    server: Server,
) -> None:
    """A child that was forked a moment ago has not closed its copy of the listener."""
    await server.start(server.rig.bundle("c1", "true"))
    pid = await server.wait_up()
    (path,) = server.sockets
    pidfd = os.pidfd_open(pid)
    copies = [
        ctypes.CDLL(None).syscall(PIDFD_GETFD, pidfd, int(entry.name), 0)
        for entry in Path(f"/proc/{pid}/fd").iterdir()
        if str(entry.readlink()).startswith("socket:")
    ]
    try:
        assert min(copies) >= 0
        assert server.ask(b"stop") is not None
        await wait_gone([pid])
        assert not path.exists()
    finally:
        for fd in (pidfd, *copies):
            os.close(fd)


async def test_a_stopped_process_that_makes_a_server_is_given_up(server: Server) -> None:
    server.directory.mkdir(mode=0o700)
    lock = server.directory / f".{Path(identity.socket_path()).name}.new"
    hold = f"""
import fcntl, os, signal
lock = os.open({str(lock)!r}, os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(lock, fcntl.LOCK_EX)
os.write(lock, b"%-20d" % os.getpid())
os.kill(os.getpid(), signal.SIGSTOP)
"""
    with subprocess.Popen([sys.executable, "-c", hold]) as holder:  # noqa: ASYNC220 - takes no time
        try:
            with trio.fail_after(10 * PATIENCE):
                while state_of(holder.pid) != "T":
                    await trio.sleep(0.01)
            began = time.monotonic()
            daemon = await server.start(server.rig.bundle("c1", "true"))
            assert time.monotonic() - began < 5 * PATIENCE
            assert alive(daemon)
            assert server.ask(b"status") is None
        finally:
            holder.kill()
    # Its lock ended with it.
    daemon = await server.start(server.rig.bundle("c2", "true"))
    assert parent_of(daemon) == await server.wait_up()


async def test_switched_off_none_is_left(server: Server) -> None:
    await server.start(server.rig.bundle("c1", "true"), TRIO_SHIM_FORKSERVER="off")
    assert server.sockets == []


async def test_a_container_runs_under_a_forked_daemon(server: Server) -> None:
    first, second = (server.rig.bundle(f"c{i}", "sh", "-c", "exit 7") for i in range(2))
    await server.start(first)
    await server.wait_up()
    await server.start(second)
    task = await server.rig.connect()
    await server.rig.run(task, second)
    assert (await task.Wait(WaitRequest(id="c1"), timeout=10)).exit_status == 7


async def test_a_forked_daemon_has_what_its_caller_had_and_not_what_the_server_had(
    server: Server,
) -> None:
    first, second = (server.rig.bundle(f"c{i}", "true") for i in range(2))
    await server.start(first, MARK="first")
    await server.wait_up()
    os.mkfifo(second / "log")

    pid = await server.start(second, MARK="second", before=take_attributes)
    # Programs of the daemon inherit these; its environment block in /proc is the server's.
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    assert status["Umask"] == "0027"
    assert status["Cpus_allowed_list"] == "0"
    assert os.getpriority(os.PRIO_PROCESS, pid) == 3
    # The daemon may open as many files as the hard limit allows.
    assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (2000, 2000)
    assert os.getsid(pid) == pid
    links = {
        int(fd): os.readlink(f"/proc/{pid}/fd/{fd}")  # noqa: PTH115
        for fd in os.listdir(f"/proc/{pid}/fd")
    }
    assert links[0] == links[1] == "/dev/null"
    assert links[2] == str(second / "log")
    assert not any("pipe:" in link for fd, link in links.items() if fd < 3)
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    assert words[3:5] == [b"-id", b"c1"]


async def test_the_runtime_gets_the_callers_limit_of_open_files(server: Server) -> None:
    await server.start(server.rig.bundle("c0", "true"))
    await server.wait_up()
    bundle = server.rig.bundle("c1", "true")
    limits = (1000, 2000)
    await server.start(bundle, before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits))
    seen = server.rig.root / "seen"
    show = "grep '^Max open files' /proc/self/limits"
    wrapper = server.rig.wrapper("peek", f'{show} > {seen}; exec runc "$@"')
    task = await server.rig.connect()
    options = server.rig.options(binary_name=wrapper)
    await task.Create(server.rig.create_request(bundle, options=options), timeout=20)
    assert seen.read_text().split()[3:5] == ["1000", "2000"]


async def test_the_runtime_gets_the_callers_environment(server: Server) -> None:
    first, second = (server.rig.bundle(f"c{i}", "true") for i in range(2))
    await server.start(first, MARK="first", ONLY_FIRST="1")
    await server.wait_up()
    await server.start(second, MARK="second")
    seen = server.rig.root / "seen"
    wrapper = server.rig.wrapper("peek", f'env > {seen}; exec runc "$@"')
    task = await server.rig.connect()
    options = server.rig.options(binary_name=wrapper)
    await task.Create(server.rig.create_request(second, options=options), timeout=20)
    lines = seen.read_text().splitlines()
    assert "MARK=second" in lines
    assert not any(line.startswith("ONLY_FIRST") for line in lines)


async def test_delete_and_info_are_answered_by_the_server_too(server: Server) -> None:
    bundle = server.rig.bundle("c1", "true")
    await server.start(bundle)
    pid = await server.wait_up()
    for action in ("delete", "-info"):
        done = server.launch(bundle, action)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout
    assert DeleteResponse.FromString(server.launch(bundle, "delete").stdout).exit_status == 137
    assert server.ask(b"status")["pid"] == pid


async def test_an_error_reaches_the_manager_in_one_line(server: Server) -> None:
    await server.start(server.rig.bundle("c1", "true"))
    await server.wait_up()
    empty = server.rig.root / "empty"
    empty.mkdir()
    done = server.launch(empty, "start")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"config.json" in done.stderr
    assert done.stderr.count(b"\n") == 1


async def test_daemons_outlive_their_server(server: Server) -> None:
    bundles = [server.rig.bundle(f"c{i}", "true") for i in range(2)]
    await server.start(bundles[0])
    pid = await server.wait_up()
    daemon = await server.start(bundles[1])
    os.kill(pid, signal.SIGKILL)
    await wait_gone([pid])
    assert alive(daemon)
    await server.rig.connect()


async def test_after_the_servers_death_the_next_start_makes_a_new_one(server: Server) -> None:
    bundles = [server.rig.bundle(f"c{i}", "true") for i in range(2)]
    await server.start(bundles[0])
    first = await server.wait_up()
    os.kill(first, signal.SIGKILL)
    await wait_gone([first])
    daemon = await server.start(bundles[1])
    second = await server.wait_up()
    assert second != first
    assert parent_of(daemon) == second


async def test_a_server_without_daemons_leaves_when_idle(server: Server) -> None:
    await server.start(server.rig.bundle("c1", "true"), TRIO_SHIM_FORKSERVER_IDLE="0.5")
    pid = await server.wait_up()
    await (await server.rig.connect()).Shutdown(ShutdownRequest(), timeout=5)
    await wait_gone([pid], 10)
    assert server.sockets == []


async def test_a_server_with_a_daemon_is_not_idle(server: Server) -> None:
    await server.start(server.rig.bundle("c1", "true"), TRIO_SHIM_FORKSERVER_IDLE="1")
    pid = await server.wait_up()
    await trio.sleep(2)  # the time that must make no difference
    assert alive(pid)
    task = await server.rig.connect()
    await task.Shutdown(ShutdownRequest(), timeout=5)
    await wait_gone([pid], 10)


def kibibytes(pid: int, name: str) -> int:
    """Return a field of the sum over all of a process's mappings."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise AssertionError(f"no {name} of {pid}")


async def test_a_daemon_with_a_container_shares_most_of_its_memory_with_the_server(
    server: Server,
) -> None:
    bundles = [server.rig.bundle(f"c{i}", "sleep", "1000") for i in range(3)]
    await server.start(bundles[0], command=LAUNCH)
    pid = await server.wait_up()
    for bundle in bundles[1:]:
        daemon = await server.start(bundle)
        await server.rig.run(await server.rig.connect(), bundle)
    # Measured: 35 % with CPython 3.11, 17 % where it has immortal objects.
    share = kibibytes(daemon, "Private_Dirty") / kibibytes(pid, "Anonymous")
    assert share < (0.25 if libc.has_immortals() else 0.45)


async def test_a_signal_in_its_warm_up_ends_a_server(server: Server) -> None:
    """The warm-up runs a daemon, which handles the signal itself."""
    with subprocess.Popen(  # noqa: ASYNC220 - starting it takes no time
        [*LAUNCH, "forkserver"],
        cwd=server.rig.root,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        try:
            with trio.fail_after(30 * PATIENCE):
                while not _catches(process.pid, signal.SIGTERM):
                    await trio.sleep(0.001)
            process.terminate()
            assert process.wait(30 * PATIENCE) == 0
        finally:
            process.kill()


def _catches(pid: int, number: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text().split("\n")
    caught = next(line.split()[1] for line in status if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (number - 1) & 1)
