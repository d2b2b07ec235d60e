"""A fork server keeps what its daemons need to survive, for as long as they live and no longer."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from shim.api.task_pb2 import ShutdownRequest, WaitRequest
from shim.linux import sockets
from tests.process.replaced import STATE, connect, files_of, log_of, replaced, wait_for
from tests.process.rig import wait_gone
from tests.process.servers import ROOT, Server, children_of, parent_of, state_of


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
    answer = surviving.ask(b"stop")
    assert [answer[name] for name in ("stopped", "keeps", "reports")] == [True, 1, 0]
    stopped = Path(answer["socket"])
    await wait_gone([spare])
    assert surviving.sockets == []
    address = surviving.rig.address
    other = await surviving.start(surviving.rig.bundle("c2", "true"))
    assert parent_of(other) == await surviving.wait_up() != pid
    surviving.rig.address = address
    replacement = await replaced(surviving, daemon)
    assert parent_of(replacement) == pid
    assert surviving.ask(b"status", stopped) == answer
    os.kill(replacement, signal.SIGTERM)
    await wait_gone([replacement, pid])
    assert not stopped.exists()


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
    await wait_for(lambda: not list(filter(is_zombie, children_of(pid))))


def is_zombie(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return state_of(pid) == "Z"
    return False


async def test_sigterm_ends_a_server_and_no_daemon(surviving: Server) -> None:
    bundle = surviving.rig.bundle("c1", "true")
    with log_of(bundle) as log:
        daemon = await surviving.start(bundle)
        pid = await surviving.wait_up()
        os.kill(pid, signal.SIGTERM)
        await wait_gone([pid])
        text = b""

        def read() -> bool:
            nonlocal text
            text += log()
            return b"the keeper has ended" in text

        await wait_for(read)
    assert text.count(b"level=warning") == 1
    assert await connect(surviving) == daemon


async def test_a_daemon_without_a_fork_server_says_that_it_does_not_survive(
    surviving: Server,
) -> None:
    bundle = surviving.rig.bundle("c1", "true")
    with log_of(bundle) as log:
        await surviving.start(bundle, TRIO_SHIM_FORKSERVER="off")
        text = log()
    assert b'reason="it was started without a fork server"' in text


async def test_by_default_nothing_is_kept_and_nothing_replaced(server: Server) -> None:
    bundle = server.rig.bundle("c1", "true")
    with log_of(bundle) as log:
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
        assert log() == b""


async def test_a_server_with_no_room_for_files_says_so_and_the_daemon_goes_on(
    surviving: Server,
) -> None:
    bundle = surviving.rig.bundle("c1", "true")
    # The server keeps 256 for itself.
    few = (264, 264)
    with log_of(bundle) as log:
        daemon = await surviving.start(
            bundle, before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, few)
        )
        await wait_for(lambda: b"a death of this shim" in log())
    assert await connect(surviving) == daemon
