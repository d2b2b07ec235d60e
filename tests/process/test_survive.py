"""A daemon that is killed is replaced by the fork server, at the same address."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.lowlevel

from shim import names
from shim.api.task_grpc import TaskStub
from shim.api.task_pb2 import ConnectRequest, ShutdownRequest, WaitRequest
from shim.linux import sockets
from shim.linux.peers import peer_of
from shim.ttrpc.client import open_channel
from shimctl.host.doctor import servers
from tests.e2e.waiting import PATIENCE
from tests.process.rig import NAMESPACE, alive, wait_gone
from tests.process.servers import ROOT, Server, parent_of, state_of

if TYPE_CHECKING:
    from collections.abc import Callable

STATE = "/memfd:trio-shim-state (deleted)"


@pytest.fixture
def surviving(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    path = server.rig.root / "host.toml"
    path.write_text("survive = true\n")
    monkeypatch.setenv("TRIO_SHIM_CONFIG", str(path))
    return server


async def connect(server: Server) -> int:
    """Connect to the address; return the pid of the daemon there."""
    server.rig.daemons.clear()
    await server.rig.connect()
    return server.rig.daemons[0]


async def replaced(server: Server, daemon: int, number: int = signal.SIGKILL) -> int:
    """Kill the daemon; return the pid of its replacement."""
    os.kill(daemon, number)
    replacement = await connect(server)
    assert replacement != daemon
    return replacement


def files_of(pid: int) -> list[str]:
    """Return the files of a process's fds, in the order of their numbers."""
    found = []
    for number in sorted(map(int, os.listdir(f"/proc/{pid}/fd"))):
        with suppress(FileNotFoundError):  # closed since
            found.append(os.readlink(f"/proc/{pid}/fd/{number}"))  # noqa: PTH115 - as in /proc
    return found


async def wait_for(condition: Callable[[], object]) -> None:
    with trio.fail_after(10 * PATIENCE):
        while not condition():
            await trio.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
async def test_a_killed_daemon_is_replaced_at_its_address(
    surviving: Server, number: signal.Signals
) -> None:
    daemon = await surviving.start(surviving.rig.bundle("c1", "true"))
    replacement = await replaced(surviving, daemon, number)
    assert parent_of(replacement) == await surviving.wait_up()
    assert surviving.ask(b"status")["daemons"] == 1


async def test_new_clients_have_the_replacement_as_their_peer(surviving: Server) -> None:
    """``start`` looks at the peer: one that is stopped answers nothing."""
    daemon = await surviving.start(surviving.rig.bundle("c1", "true"))
    with sockets.connect_blocking(surviving.rig.address, 10) as sock:
        assert peer_of(sock).pid == daemon
    replacement = await replaced(surviving, daemon)
    with sockets.connect_blocking(surviving.rig.address, 10) as sock:
        assert peer_of(sock).pid == replacement


async def test_a_replacement_that_no_manager_uses_ends_soon(surviving: Server) -> None:
    daemon = await surviving.start(surviving.rig.bundle("c1", "true"))
    os.kill(daemon, signal.SIGKILL)
    replacement = await connect(surviving)
    await wait_for(lambda: not alive(replacement))
    assert surviving.ask(b"status")["daemons"] == 0


async def test_a_replacement_has_the_attributes_of_its_daemon(surviving: Server) -> None:
    """Its caller, from which the daemon copied them, has ended."""
    first, second = (surviving.rig.bundle(f"c{i}", "true") for i in range(2))
    await surviving.start(first, MARK="first", ONLY_FIRST="1")
    os.mkfifo(second / "log")

    def unusual() -> None:
        os.umask(0o027)
        os.nice(3)
        os.sched_setaffinity(0, {0})
        resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 2000))

    daemon = await surviving.start(second, MARK="second", before=unusual)
    before = attributes_of(daemon)
    replacement = await replaced(surviving, daemon)
    assert attributes_of(replacement) == before
    assert os.getsid(replacement) == replacement
    links = files_of(replacement)
    assert links[:3] == ["/dev/null", "/dev/null", str(second / "log")]
    # The runtime gets the environment.
    seen = surviving.rig.root / "seen"
    wrapper = surviving.rig.wrapper("peek", f'env > {seen}; exec runc "$@"')
    task = await surviving.rig.connect()
    options = surviving.rig.options(binary_name=wrapper)
    await task.Create(surviving.rig.create_request(second, options=options), timeout=20)
    lines = seen.read_text().split("\n")
    assert "MARK=second" in lines
    assert not any(line.startswith("ONLY_FIRST") for line in lines)


def attributes_of(pid: int) -> dict[str, object]:
    names = ("Umask", "Cpus_allowed_list", "SigBlk", "SigIgn", "SigCgt", "THP_enabled", "Name")
    status = (
        line.partition(":\t") for line in Path(f"/proc/{pid}/status").read_text().split("\n")
    )
    return {name: value for name, _, value in status if name in names} | {
        "nice": os.getpriority(os.PRIO_PROCESS, pid),
        "files": resource.prlimit(pid, resource.RLIMIT_NOFILE),
        "title": Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0"),
        "directory": os.readlink(f"/proc/{pid}/cwd"),  # noqa: PTH115 - a plain string
        "oom": Path(f"/proc/{pid}/oom_score_adj").read_text(),
        "cgroup": Path(f"/proc/{pid}/cgroup").read_text(),
    }


async def test_the_log_of_a_replacement_is_that_of_its_daemon(surviving: Server) -> None:
    bundle = surviving.rig.bundle("c1", "true")
    os.mkfifo(bundle / "log")
    log = os.open(bundle / "log", os.O_RDONLY | os.O_NONBLOCK)
    try:
        daemon = await surviving.start(bundle)
        await replaced(surviving, daemon)
        assert b"replaces" in os.read(log, 1 << 16)
    finally:
        os.close(log)


@pytest.mark.parametrize("end", ["shutdown", "signal"])
async def test_a_daemon_that_ends_on_purpose_is_not_replaced(surviving: Server, end: str) -> None:
    daemon = await surviving.start(surviving.rig.bundle("c1", "true"))
    pid = await surviving.wait_up()
    assert STATE in files_of(pid)
    if end == "shutdown":
        await (await surviving.rig.connect()).Shutdown(ShutdownRequest(), timeout=5)
    else:
        os.kill(daemon, signal.SIGTERM)
    await wait_gone([daemon])
    await wait_for(lambda: STATE not in files_of(pid))
    await wait_for(lambda: surviving.ask(b"status")["daemons"] == 0)
    assert not sockets.can_connect(surviving.rig.address)
    assert not Path(sockets.socket_path(surviving.rig.address)).exists()


async def test_a_daemon_that_keeps_dying_is_given_up_and_the_reason_is_told(
    surviving: Server,
) -> None:
    bundle = surviving.rig.bundle("c1", "true")
    os.mkfifo(bundle / "log")
    log = os.open(bundle / "log", os.O_RDONLY | os.O_NONBLOCK)
    try:
        daemon = await surviving.start(bundle)
        for _ in range(2):
            daemon = await replaced(surviving, daemon)
        os.kill(daemon, signal.SIGKILL)
        pid = await surviving.wait_up()
        await wait_for(lambda: surviving.ask(b"status")["daemons"] == 0)
        await wait_for(lambda: STATE not in files_of(pid))
        assert not sockets.can_connect(surviving.rig.address)
        text = os.read(log, 1 << 16).decode()
    finally:
        os.close(log)
    assert 'level=error msg="the fork server gives up a shim' in text
    assert 'reason="it died 3 times in 60 seconds"' in text
    [found] = servers.given_up(str(surviving.directory), time.time())
    assert found.subject == f"{NAMESPACE}/c1"
    line = json.loads((surviving.directory / names.GIVEN_UP).read_text())
    assert line.pop("time") > 1e9
    assert line == {
        "namespace": NAMESPACE,
        "id": "c1",
        "bundle": str(bundle),
        "address": surviving.rig.address,
        "reason": "it died 3 times in 60 seconds",
    }


async def test_without_a_limit_it_is_replaced_each_time_and_no_file_is_left(
    surviving: Server,
) -> None:
    daemon = await surviving.start(surviving.rig.bundle("c1", "true"), TRIO_SHIM_DEATHS="0")
    pid = await surviving.wait_up()
    await surviving.wait_spare()
    files, kept = len(files_of(daemon)), len(files_of(pid))
    for _ in range(20):
        os.kill(daemon, signal.SIGKILL)
        async with open_channel(await sockets.connect(surviving.rig.address)) as channel:
            reply = await TaskStub(channel).Connect(ConnectRequest(id="c1"), timeout=5 * PATIENCE)
            assert reply.shim_pid != daemon
            daemon = reply.shim_pid
    # The rig's connection lasts, and a replacement has the file of its turn.
    await wait_for(lambda: len(files_of(daemon)) <= files + 1 and len(files_of(pid)) <= kept)
    await connect(surviving)


async def test_a_replacement_killed_while_it_begins_is_replaced(surviving: Server) -> None:
    daemon = await surviving.start(surviving.rig.bundle("c1", "true"), TRIO_SHIM_DEATHS="0")
    pid = await surviving.wait_up()
    spare = await surviving.wait_spare()
    for attempt in range(15):
        os.kill(daemon, signal.SIGKILL)
        with trio.fail_after(10 * PATIENCE):
            while not (
                begun := [
                    one for one in children(pid) if one not in (daemon, spare) and alive(one)
                ]
            ):
                await trio.lowlevel.checkpoint()
        await trio.sleep(attempt * 0.002)  # another moment each time
        os.kill(begun[0], signal.SIGKILL)
        daemon = await connect(surviving)
        assert daemon not in begun


def is_zombie(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return state_of(pid) == "Z"
    return False


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_no_child_of_the_server_holds_files_of_other_daemons(surviving: Server) -> None:
    bundles = [surviving.rig.bundle(f"c{i}", "true") for i in range(3)]
    daemons = [await surviving.start(bundle) for bundle in bundles]
    pid = await surviving.wait_up()
    spare = await surviving.wait_spare()
    assert files_of(pid).count(STATE) >= 3
    assert not any(link.startswith("/memfd") for link in files_of(spare))
    daemons[0] = await replaced_at(surviving, daemons[0], 0)
    listening = [set(listeners(one)) for one in (pid, spare, *daemons)]
    server, spares, *others = listening
    assert spares == set()
    assert all(len(one) == 1 for one in others)
    assert server > set.union(*others)


async def replaced_at(server: Server, daemon: int, number: int) -> int:
    """Kill the daemon of bundle ``number``; return the pid of its replacement."""
    address = (server.rig.root / f"c{number}" / "address").read_text()
    server.rig.address = address
    return await replaced(server, daemon)


def listeners(pid: int) -> list[str]:
    """Return the inodes of the listening sockets of a process."""
    lines = (line.split() for line in Path("/proc/net/unix").read_text().split("\n")[1:])
    listening = {f"socket:[{words[6]}]" for words in lines if words and words[3] == "00010000"}
    return [link for link in files_of(pid) if link in listening]


async def test_a_server_that_is_told_to_stop_stays_for_its_daemons_only(
    surviving: Server,
) -> None:
    daemon = await surviving.start(surviving.rig.bundle("c1", "true"))
    pid = await surviving.wait_up()
    spare = await surviving.wait_spare()
    assert surviving.ask(b"stop") == {}
    await wait_gone([spare])
    assert surviving.sockets == []
    address = surviving.rig.address
    other = await surviving.start(surviving.rig.bundle("c2", "true"))
    assert parent_of(other) == await surviving.wait_up() != pid
    surviving.rig.address = address
    replacement = await replaced(surviving, daemon)
    assert parent_of(replacement) == pid
    os.kill(replacement, signal.SIGTERM)
    await wait_gone([replacement, pid])


async def test_a_server_of_changed_code_stays_for_its_daemons_only(
    surviving: Server, tmp_path: Path
) -> None:
    copy = tmp_path / "lib"
    copy.mkdir()
    subprocess.run(["cp", "-r", str(ROOT / "shim"), str(copy)], check=True)
    first, second = (surviving.rig.bundle(f"c{i}", "true") for i in range(2))
    daemon = await surviving.start(first, PYTHONPATH=str(copy))
    address, pid = surviving.rig.address, await surviving.wait_up()
    with (copy / "shim/version.py").open("a") as file:
        file.write("# changed\n")
    other = await surviving.start(second, PYTHONPATH=str(copy))
    assert parent_of(other) != pid
    surviving.rig.address = address
    replacement = await replaced(surviving, daemon)
    assert parent_of(replacement) == pid
    await (await surviving.rig.connect()).Shutdown(ShutdownRequest(), timeout=5)
    await wait_gone([replacement, pid])


async def test_a_process_that_ends_with_its_daemon_has_its_exit_and_leaves_no_zombie(
    surviving: Server,
) -> None:
    rig = surviving.rig
    bundle = rig.bundle("c1", "sleep", "1000")
    daemon = await surviving.start(bundle)
    task = await rig.connect()
    init = (await rig.run(task, bundle)).pid
    for one in (daemon, init):
        os.kill(one, signal.SIGKILL)
    await connect(surviving)
    task = await rig.connect()
    assert (await task.Wait(WaitRequest(id="c1"), timeout=10)).exit_status == 137
    pid = await surviving.wait_up()
    await wait_for(lambda: not list(filter(is_zombie, children(pid))))


async def test_sigterm_ends_a_server_and_no_daemon(surviving: Server) -> None:
    bundle = surviving.rig.bundle("c1", "true")
    os.mkfifo(bundle / "log")
    log = os.open(bundle / "log", os.O_RDONLY | os.O_NONBLOCK)
    try:
        daemon = await surviving.start(bundle)
        pid = await surviving.wait_up()
        os.kill(pid, signal.SIGTERM)
        await wait_gone([pid])
        text = b""

        def read() -> bool:
            nonlocal text
            text += os.read(log, 1 << 16)
            return b"the keeper has ended" in text

        await wait_for(read)
    finally:
        os.close(log)
    assert text.count(b"level=warning") == 1
    assert await connect(surviving) == daemon


async def test_a_daemon_without_a_fork_server_says_that_it_does_not_survive(
    surviving: Server,
) -> None:
    bundle = surviving.rig.bundle("c1", "true")
    os.mkfifo(bundle / "log")
    log = os.open(bundle / "log", os.O_RDONLY | os.O_NONBLOCK)
    try:
        await surviving.start(bundle, TRIO_SHIM_FORKSERVER="off")
        text = os.read(log, 1 << 16)
    finally:
        os.close(log)
    assert b'reason="it was started without a fork server"' in text


async def test_by_default_nothing_is_kept_and_nothing_replaced(server: Server) -> None:
    bundle = server.rig.bundle("c1", "true")
    os.mkfifo(bundle / "log")
    log = os.open(bundle / "log", os.O_RDONLY | os.O_NONBLOCK)
    try:
        daemon = await server.start(bundle)
        pid = await server.wait_up()
        await server.wait_spare()
        # The listener, two ends of a pipe, and the connection to the spare child.
        await wait_for(lambda: len(files_of(pid)) == 7)
        assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == resource.getrlimit(
            resource.RLIMIT_NOFILE
        )
        os.kill(daemon, signal.SIGKILL)
        await wait_for(lambda: server.ask(b"status")["daemons"] == 0)
        assert not sockets.can_connect(server.rig.address)
        assert os.read(log, 1) == b""
    finally:
        os.close(log)


async def test_a_server_with_no_room_for_files_says_so_and_the_daemon_goes_on(
    surviving: Server,
) -> None:
    bundle = surviving.rig.bundle("c1", "true")
    os.mkfifo(bundle / "log")
    log = os.open(bundle / "log", os.O_RDONLY | os.O_NONBLOCK)
    # The server keeps 256 for itself.
    few = (264, 264)
    try:
        daemon = await surviving.start(
            bundle, before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, few)
        )
        await wait_for(lambda: b"a death of this shim" in os.read(log, 1 << 16))
    finally:
        os.close(log)
    assert await connect(surviving) == daemon


# A launcher that waits for a byte before it prints the answer and confirms it.
HELD = """
import os, sys
from shim.start import launcher
ours, theirs = (int(word) for word in os.environ["HELD"].split())
print_answer = launcher.print_answer
def held(sock, answer):
    os.write(theirs, answer[5:])
    if not os.read(ours, 1):
        os._exit(1)
    return print_answer(sock, answer)
launcher.print_answer = held
sys.exit(launcher.main())
"""


class Starter:
    """A caller of ``start`` that has received the address and has not confirmed that."""

    def __init__(self, server: Server, bundle: Path) -> None:
        theirs, self._ours = os.pipe()
        answer, ours = os.pipe()
        flags = ["-namespace", NAMESPACE, "-address", str(server.rig.root / "manager")]
        environ = {"PYTHONPATH": str(ROOT), "TTRPC_ADDRESS": "", "HELD": f"{theirs} {ours}"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", HELD, *flags, "-id", bundle.name, "start"],
            cwd=bundle,
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs, ours],
        )
        os.close(theirs)
        os.close(ours)
        self.address = os.read(answer, 4096).decode()
        os.close(answer)

    def confirm(self) -> None:
        os.write(self._ours, b"1")
        assert self.process.wait(10 * PATIENCE) == 0

    def close(self) -> None:
        """Give up the ``start``, unless it is confirmed."""
        os.close(self._ours)
        self.process.wait(10 * PATIENCE)


@pytest.mark.parametrize("confirmed", [True, False])
async def test_a_daemon_killed_before_its_caller_confirms_the_address_is_replaced(
    surviving: Server, confirmed: bool
) -> None:
    """If the caller gives up, the replacement ends as the daemon would have."""
    await surviving.start(surviving.rig.bundle("c1", "true"))
    starter = Starter(surviving, surviving.rig.bundle("c2", "true"))
    try:
        surviving.rig.address = starter.address
        daemon = await connect(surviving)
        replacement = await replaced(surviving, daemon)
        if confirmed:
            starter.confirm()
    finally:
        starter.close()
    if confirmed:
        await replaced(surviving, replacement)
    else:
        await wait_gone([replacement])
        assert not Path(sockets.socket_path(starter.address)).exists()


async def test_a_confirmation_that_a_killed_daemon_has_not_read_reaches_its_replacement(
    surviving: Server,
) -> None:
    await surviving.start(surviving.rig.bundle("c1", "true"))
    bundle = surviving.rig.bundle("c2", "true")
    starter = Starter(surviving, bundle)
    try:
        surviving.rig.address = starter.address
        daemon = await connect(surviving)
        os.kill(daemon, signal.SIGSTOP)
        await wait_for(lambda: state_of(daemon) == "T")
        starter.confirm()
    finally:
        starter.close()
    await replaced(surviving, daemon)
    # It would shut down if it took the caller for lost.
    task = await surviving.rig.connect()
    await surviving.rig.run(task, bundle)
