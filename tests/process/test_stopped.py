"""Fork servers and their children that are stopped (SIGSTOP) at any point of a conversation."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from shim.api.bootstrap_pb2 import BootstrapParams, BootstrapResult
from shim.api.task_pb2 import DeleteResponse
from shim.names import EXECUTABLE
from shim.start import identity, launcher
from shimctl.host.install import find_compiler, install
from tests.e2e.waiting import PATIENCE, wait_until
from tests.loops import turns
from tests.process.rig import NAMESPACE, alive, wait_gone
from tests.process.servers import LAUNCH, Server, daemons_of, parent_of, state_of
from tests.takencall import taken_call

if TYPE_CHECKING:
    from collections.abc import Iterator

# Seconds in which a launcher gives up and does the work itself, on a busy machine: the
# bounds are 0.9 and 0.4 s, and what took longer before took at least 15.
GIVEN_UP = 5.0 * PATIENCE

# Listens in the place of a fork server.  It replies to a caller after more than the time in
# which a caller gives up a server that sleeps, 0.9 s for ``-info``, and prints whether the
# caller is still there.  Until then it sleeps, and at most until the caller has left, or runs,
# as a server that other processes keep from the processor is also ready to run.
LATE = """
import os, select, socket, sys, time
os.umask(0o177)
path, manner, seconds, patience = *sys.argv[1:3], *map(float, sys.argv[3:])
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
    listener.bind(path)
    listener.listen()
    listener.settimeout(patience)
    print("listens", flush=True)
    caller = listener.accept()[0]
    end = time.monotonic() + seconds
    if manner == "sleeps":
        left = select.poll()
        left.register(caller, 0)
        left.poll(seconds * 1000)
    while manner == "runs" and time.monotonic() < end:
        pass
    try:
        caller.send(b"heard")
        print("is waited for", flush=True)
    except BrokenPipeError:
        print("is given up", flush=True)
"""

# Run in the first launcher, and so in the server and its children: a child that has a caller
# stops before the line of its work with the number in a file.
STOPPING = """
import os, signal, sys
control, server, count = CONTROL, 0, -1
files = (
    "shim/start/children.py",
    "shim/start/bootstrap.py",
    "shim/start/caller.py",
    "shim/start/daemonize.py",
    "shim/start/podsocket.py",
    "shim/start/launcher.py",
    "shim/delete.py",
)

def trace(frame, event, _):
    global count
    if not frame.f_code.co_filename.endswith(files):
        return None
    if event == "call" and frame.f_code.co_name == "run_call":
        try:
            count = int(open(control).read())
        except (OSError, ValueError):
            count = -1
    elif event == "line" and count > 0:
        count -= 1
        if not count:
            open(control + ".new", "w").write(str(os.getpid()))
            os.rename(control + ".new", control + ".pid")  # whole, whenever it is killed
            os.kill(os.getpid(), signal.SIGSTOP)
    return trace

sys.settrace(trace)
"""


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    if not find_compiler():
        pytest.skip("there is no C compiler")
    prefix = tmp_path_factory.mktemp("native")
    trio.run(partial(install, prefix, native=True))
    return [str(prefix / "bin" / EXECUTABLE)]


@pytest.fixture(params=["python", "native"])
def command(request: pytest.FixtureRequest) -> list[str] | None:
    """Return the command of a launcher; None is the one in Python, imported already."""
    return None if request.param == "python" else request.getfixturevalue("native")


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    wait_until("the process is stopped", lambda: state_of(pid) == "T")
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


async def test_a_stopped_server_is_given_up_and_starts_nothing_later(
    server: Server, command: list[str] | None
) -> None:
    bundle, other = (server.rig.bundle(f"c{i}", "true") for i in range(2))
    await server.start(bundle, command=command)
    pid = await server.wait_up()
    await server.wait_spare()
    before = daemons_of(server.rig.root / "manager")
    with stopped(pid):
        began = time.monotonic()
        daemon = await server.start(other, command=command)
        assert time.monotonic() - began < GIVEN_UP
        assert parent_of(daemon) != pid
        began = time.monotonic()
        done = server.launch(other, "delete", command=command)
        assert time.monotonic() - began < GIVEN_UP
        assert (done.returncode, done.stderr) == (0, b"")
        assert DeleteResponse.FromString(done.stdout).exit_status == 137
    # It has heard of the requests by the time it answers this.
    assert server.ask(b"status")["daemons"] <= 1
    assert {*daemons_of(server.rig.root / "manager")} == {*before, str(daemon)}


@pytest.mark.parametrize(
    ("manner", "seconds", "outcome"),
    [("sleeps", 0.9 + 2 * PATIENCE, "is given up"), ("runs", 1.5, "is waited for")],
    ids=["sleeps", "runs"],
)
async def test_a_server_that_is_ready_to_run_is_given_more_time(
    server: Server, command: list[str] | None, manner: str, seconds: float, outcome: str
) -> None:
    """A caller that gives it up starts a whole interpreter on a busy machine."""
    bundle = server.rig.bundle("c1", "true")
    await server.start(bundle, command=command)
    pid = await server.wait_up()
    [path] = server.sockets
    os.kill(pid, signal.SIGKILL)
    await wait_gone([pid])
    path.unlink()
    words = [str(path), manner, str(seconds), str(20 * PATIENCE)]
    args = [sys.executable, "-ISc", LATE, *words]
    with subprocess.Popen(args, stdout=subprocess.PIPE, text=True) as late:  # noqa: ASYNC220
        assert late.stdout
        assert late.stdout.readline() == "listens\n"
        done = server.launch(bundle, "-info", command=command)
        assert (done.returncode, done.stderr) == (0, b"")
        assert late.stdout.read() == f"{outcome}\n"
    path.unlink()


async def test_a_stopped_spare_child_is_passed_over(
    server: Server, command: list[str] | None
) -> None:
    bundles = [server.rig.bundle(f"c{i}", "true") for i in range(2)]
    await server.start(bundles[0], command=command)
    pid = await server.wait_up()
    spare = await server.wait_spare()
    with stopped(spare):
        daemon = await server.start(bundles[1], command=command)
        assert parent_of(daemon) == pid
        assert daemon != spare
    await wait_gone([spare])


@pytest.mark.slow
@pytest.mark.parametrize("action", ["start", "delete"])
async def test_a_child_stopped_at_any_step_is_ended_and_its_work_done_once(
    server: Server, tmp_path: Path, action: str, command: list[str] | None
) -> None:
    """The bytes that it read from standard input are not lost with it."""
    control = tmp_path / "control"
    preamble = STOPPING.replace("CONTROL", repr(str(control)))
    await server.start(
        server.rig.bundle("first", "true"), command=[*LAUNCH[:2], preamble + LAUNCH[2]]
    )
    pid = await server.wait_up()
    launch = partial(server.launch, command=command)
    steps = 0
    # The child's work is the same for both launchers, so the one in C stops it at fewer steps:
    # each of them costs it the imports of the launcher in Python.
    first, pace = (1, turns(34, 17)) if command is None else (18, 68)
    for step in range(first, 2000, pace):
        bundle = server.rig.bundle(f"c{step}", "true")
        control.write_text(str(step))
        began = time.monotonic()
        params = BootstrapParams(instance_id=bundle.name, namespace=NAMESPACE)
        stdin = params.SerializeToString() if action == "start" else b""
        done = await trio.to_thread.run_sync(partial(launch, bundle, action, stdin=stdin))
        assert time.monotonic() - began < GIVEN_UP
        assert (done.returncode, done.stderr) == (0, b"")
        try:
            child = int(Path(f"{control}.pid").read_text())
        except FileNotFoundError:
            break  # its work has fewer steps than this
        Path(f"{control}.pid").unlink()
        steps += 1
        is_stopped = alive(child) and state_of(child) == "T"
        if is_stopped:
            os.kill(child, signal.SIGCONT)
        if action == "delete":
            await wait_gone([child])
            assert DeleteResponse.FromString(done.stdout).exit_status == 137
            continue
        answer = BootstrapResult.FromString(done.stdout)
        assert answer.version == 3
        server.rig.address = answer.address
        server.rig.daemons.clear()
        await server.rig.connect()
        if server.rig.daemons == [child]:
            assert is_stopped  # it had answered before
            continue
        await wait_gone([child])
        assert parent_of(server.rig.daemons[0]) != pid
    assert steps > (5 if action == "start" else 1)


class Caller:
    """A launcher that a test conducts packet by packet."""

    def __init__(self, server: Server, bundle: Path) -> None:
        (path,) = server.sockets
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(10)
        self.sock.connect(str(path))
        flags = ["-namespace", NAMESPACE, "-address", str(server.rig.root / "manager")]
        words = ["run", EXECUTABLE, *flags, "-id", bundle.name, "start"]
        own, null = os.pidfd_open(os.getpid()), os.open(os.devnull, os.O_RDONLY)
        socket.send_fds(self.sock, ["\0".join(words).encode()], [null, own])
        os.close(own)
        os.close(null)

    def wait_taken(self) -> int:
        """Return the pid of the child that took the call."""
        fds: list[int] = []
        while not fds:  # until then the server speaks
            packet, fds, _, _ = socket.recv_fds(self.sock, 100, 1)
            assert packet
        os.close(fds[0])
        return int(packet.split()[1])

    def wait_answer(self) -> bytes:
        while (packet := self.sock.recv(65536)).startswith((b"heard", b"child")):
            pass
        return packet


async def test_a_request_is_only_carried_out_for_a_caller_that_is_there(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = server.rig.bundle("first", "true")
    await server.start(bundle)
    await server.wait_up()
    bundle = server.rig.bundle("c1", "true")
    monkeypatch.chdir(bundle)
    gone = Caller(server, bundle)
    gone.sock.close()
    silent = Caller(server, bundle)
    child = silent.wait_taken()
    silent.sock.close()
    await wait_gone([child])
    assert not (bundle / "address").exists()
    quick = Caller(server, bundle)
    child = quick.wait_taken()
    quick.sock.send(b"go")
    assert b"unix://" in quick.wait_answer()
    assert alive(child)
    quick.sock.close()  # without the confirmation that it printed the address
    await wait_gone([child])
    happy = Caller(server, bundle)
    happy.wait_taken()
    happy.sock.send(b"go")
    server.rig.address = happy.wait_answer()[5:].decode()
    happy.sock.send(b"told")
    happy.sock.close()
    await server.rig.connect()


async def test_callers_that_say_nothing_hold_up_nobody(server: Server) -> None:
    await server.start(server.rig.bundle("first", "true"))
    pid = await server.wait_up()
    (path,) = server.sockets
    with contextlib.ExitStack() as stack:
        silent = []
        for _ in range(20):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            sock.connect(str(path))
            silent.append(sock)
        assert parent_of(await server.start(server.rig.bundle("c1", "true"))) == pid
        for sock in silent:
            sock.settimeout(10)
            assert sock.recv(1) == b""  # it is dropped in time


@contextlib.contextmanager
def slow_child(
    server: Server, program: str, seconds: float | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Be a server of which the child, the yielded process, takes a call and runs ``program``.

    The answer comes ``seconds`` later, or never.
    """
    server.directory.mkdir(mode=0o700)

    def answer(caller: socket.socket) -> None:
        if caller.recv(16) and seconds is not None:
            caller.settimeout(seconds)
            with contextlib.suppress(TimeoutError):
                caller.recv(16)
            with contextlib.suppress(BrokenPipeError):
                caller.send(launcher.encode_answer(0, b"unix:///the/shim"))
        caller.settimeout(None)
        while caller.recv(16):
            pass

    with taken_call(identity.socket_path(), program, answer) as child:
        yield child


def hanging_child(server: Server) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """Be a server of which the child sleeps, as if for a disk, and never answers."""
    return slow_child(server, "exec sleep 1000")


async def test_a_delete_without_an_answer_replies_within_its_limit(
    server: Server, command: list[str]
) -> None:
    """Its child waits for a disk.  There is no time for a further attempt."""
    bundle = server.rig.bundle("c1", "true")
    with hanging_child(server) as child:
        before = time.monotonic()
        done = server.launch(bundle, "delete", command=command)
        assert time.monotonic() - before < launcher.LIMIT["delete"] + 5 * PATIENCE
        assert child.wait(1) == -signal.SIGKILL
    assert done.returncode == 0
    assert b"no time is left after an earlier attempt: the container is killed" in done.stderr
    assert DeleteResponse.FromString(done.stdout).exit_status == 137


@pytest.mark.parametrize(
    ("program", "status", "output"),
    [("exec sleep 1000", 1, ""), ("while :; do :; done", 0, "unix:///the/shim")],
    ids=["waits for a disk", "waits for a processor"],
)
async def test_a_start_has_more_time_if_its_child_is_ready_to_run(
    server: Server, capfd: pytest.CaptureFixture[str], program: str, status: int, output: str
) -> None:
    """On a busy machine a start may take longer than one whose disk hangs is waited for."""
    with slow_child(server, program, seconds=1.5):
        done, _ = launcher.run_on_server(["shim", "start"], time.monotonic() + 0.5)
    assert (done, capfd.readouterr().out) == (status, output)


async def test_a_call_without_an_answer_is_not_run_again(
    server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    with hanging_child(server) as child:
        status, _ = launcher.run_on_server(["shim", "start"], time.monotonic() + 0.5)
        assert child.wait(1) == -signal.SIGKILL
    assert status == 1
    assert "no answer within 0 s; check the disk" in capfd.readouterr().err
