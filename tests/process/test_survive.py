"""A daemon that is killed is replaced by the fork server, at the same address."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from shim import names
from shim.api.task_grpc import TaskStub
from shim.api.task_pb2 import ConnectRequest, ShutdownRequest
from shim.linux import sockets
from shim.linux.peers import peer_of
from shim.ttrpc.client import open_channel
from shimctl.host.doctor import servers
from tests.e2e.waiting import PATIENCE
from tests.process.replaced import STATE, connect, files_of, log_of, replaced, wait_for
from tests.process.rig import NAMESPACE, alive, wait_gone
from tests.process.servers import Server, children_of, parent_of, take_attributes


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
    await wait_for(lambda: surviving.ask(b"status")["daemons"] == 0)


async def test_a_replacement_has_the_attributes_of_its_daemon(surviving: Server) -> None:
    """Its caller, from which the daemon copied them, has ended."""
    first, second = (surviving.rig.bundle(f"c{i}", "true") for i in range(2))
    await surviving.start(first, MARK="first", ONLY_FIRST="1")
    os.mkfifo(second / "log")

    daemon = await surviving.start(second, MARK="second", before=take_attributes)
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
    with log_of(bundle) as log:
        daemon = await surviving.start(bundle)
        await replaced(surviving, daemon)
        assert b"replaces" in log()


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
    with log_of(bundle) as log:
        daemon = await surviving.start(bundle)
        for _ in range(2):
            daemon = await replaced(surviving, daemon)
        os.kill(daemon, signal.SIGKILL)
        pid = await surviving.wait_up()
        await wait_for(lambda: surviving.ask(b"status")["daemons"] == 0)
        await wait_for(lambda: STATE not in files_of(pid))
        assert not sockets.can_connect(surviving.rig.address)
        text = log().decode()
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
    files = kept = 0
    for number in range(21):
        if number == 1:  # the keeper has read the messages of the first daemon at its death
            files, kept = len(files_of(daemon)), len(files_of(pid))
        os.kill(daemon, signal.SIGKILL)
        async with open_channel(await sockets.connect(surviving.rig.address)) as channel:
            reply = await TaskStub(channel).Connect(ConnectRequest(id="c1"), timeout=5 * PATIENCE)
            assert reply.shim_pid != daemon
            daemon = reply.shim_pid
    await wait_for(lambda: len(files_of(daemon)) <= files and len(files_of(pid)) <= kept)
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
                    one for one in children_of(pid) if one not in (daemon, spare) and alive(one)
                ]
            ):
                await trio.lowlevel.checkpoint()
        await trio.sleep(attempt * 0.002)  # another moment each time
        os.kill(begun[0], signal.SIGKILL)
        daemon = await connect(surviving)
        assert daemon not in begun
