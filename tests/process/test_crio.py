"""A container's life under CRI-O's calling convention, with real runc."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api import process_pb2
from shim.api.task_pb2 import KillRequest, StatsRequest
from shim.linux.sockets import can_connect, socket_address, socket_path
from tests.openfiles import open_files, wait_no_more_files
from tests.process.crio import (
    NAME,
    SHIM,
    TIMED_OUT,
    CrioContainer,
    crio_bundle,
    unique,
)
from tests.process.rig import Rig, alive, wait_gone

if TYPE_CHECKING:
    from shim.api.task_pb2 import StateResponse


async def running(rig: Rig, name: str, *args: str, **kinds: Any) -> CrioContainer:
    container = CrioContainer(rig, crio_bundle(rig, name, *args, **kinds))
    await container.start_daemon()
    await container.create()
    await container.start()
    return container


def test_a_start_of_crio_asks_for_the_version_and_the_features() -> None:
    assert NAME.fullmatch(SHIM.name)
    version = subprocess.run(
        [SHIM, "--version"], capture_output=True, check=True, stdin=subprocess.DEVNULL
    )
    assert version.stdout.startswith(b"containerd-shim-trio-v2:")
    assert not version.stderr
    features = subprocess.run(
        [SHIM, "features"], capture_output=True, check=False, stdin=subprocess.DEVNULL
    )
    assert (features.returncode, features.stderr) == (0, b"")
    told = json.loads(features.stdout)
    # Without either, CRI-O takes the rest for invalid.
    assert told["ociVersionMin"]
    assert told["ociVersionMax"]


@pytest.mark.parametrize("status", [0, 3])
def test_what_the_runtime_says_of_its_features_is_said_as_it_is(
    tmp_path: Path, status: int
) -> None:
    runtime = tmp_path / "runc"
    runtime.write_text(f'#!/bin/sh\necho "out $*"; echo err >&2; exit {status}\n')
    runtime.chmod(0o755)
    done = subprocess.run(
        [SHIM, "features"],
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, b"out features\n", b"err\n")


def test_without_a_runtime_there_are_no_features_and_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [SHIM, "features"],
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PATH": str(tmp_path)},
    )
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"runc" in done.stderr
    assert done.stderr.count(b"\n") == 1


async def test_a_container_lives_and_dies(rig: Rig) -> None:
    script = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done"
    container = CrioContainer(rig, crio_bundle(rig, "c1", "sh", "-c", script))
    answer = await container.start_daemon()
    # Its plainest form: nothing in it can be a version CRI-O refuses.
    assert answer == container.address
    assert answer == socket_address("", "default", container.id)
    pid = await container.create()
    assert (await container.update_status()).status == process_pb2.CREATED
    await container.start()
    assert (await container.update_status()).pid == pid
    assert (await container.task.Stats(StatsRequest(id=container.id), timeout=5)).stats.value
    await wait_for(container.stdout, b"ready\n")
    await container.stop(timeout=20)
    assert await container.exit_code() == 7
    status = await container.update_status()
    assert status.status == process_pb2.STOPPED
    assert abs(status.exited_at.seconds - os.stat(container.bundle).st_mtime) < 600  # noqa: PTH116
    await container.remove()
    await wait_gone(rig.daemons)
    assert not Path(socket_path(container.address)).exists()
    assert not container.oom_killed
    # CRI-O takes no events, and the shim logs no warning about that.
    assert b"event" not in container.log
    assert container.log.count(b"\n") < 10, container.log.decode()


async def test_no_options_are_runc_and_its_usual_place(rig: Rig) -> None:
    bundle = crio_bundle(rig, "c1", "sh", "-c", "exit 3")
    container = CrioContainer(rig, bundle, runtime_config=False)
    state = Path("/run/containerd/runc/default", container.id)
    await container.start_daemon()
    await container.create()
    try:
        assert state.is_dir()
        await container.start()
        assert await container.exit_code() == 3
    finally:
        if await container.is_alive():
            await container.stop(signal=9)
        await container.remove()
    assert not state.exists()


async def test_signal_0_tells_the_living_from_the_dead(rig: Rig) -> None:
    container = await running(rig, "c1", "sleep", "1000")
    assert await container.is_alive()
    await container.stop(signal=9)
    assert not await container.is_alive()
    with pytest.raises(GRPCError) as caught:
        await container.task.Kill(KillRequest(id=container.id, signal=0), timeout=5)
    assert caught.value.status is Status.NOT_FOUND
    await container.remove()


async def test_an_exec_has_its_output_its_input_and_its_code(rig: Rig) -> None:
    container = await running(rig, "c1", "sleep", "1000")
    result = await container.exec_sync("sh", "-c", "echo out; exit 5")
    assert (result.code, result.stdout) == (5, b"out\n")
    result = await container.exec_sync("cat", stdin=b"in\n")
    assert (result.code, result.stdout) == (0, b"in\n")


async def test_probes_that_time_out_are_killed_and_cost_nothing(rig: Rig) -> None:
    """CRI-O never deletes them: their cost would last as long as the pod."""
    container = await running(rig, "c1", "sleep", "1000")
    assert (await container.exec_sync("true", timeout=20)).code == 0
    result = await container.exec_sync("sh", "-c", "echo out; exec sleep 1000", timeout=0.5)
    assert result.code == TIMED_OUT
    before = open_files(rig.daemons[0])
    for _ in range(5):
        assert (await container.exec_sync("sleep", "1000", timeout=0.1)).code == TIMED_OUT
    assert (await container.exec_sync("true", timeout=20)).code == 0
    await wait_no_more_files(rig.daemons[0], before)


async def test_running_out_of_memory_is_left_in_a_file(rig: Rig) -> None:
    def small(config: dict[str, Any]) -> None:
        config["linux"]["resources"]["memory"] = {"limit": 16 << 20}

    container = await running(rig, "c1", "sh", "-c", "a=x; while :; do a=$a$a; done", change=small)
    assert await container.exit_code() != 0
    assert container.oom_killed
    await container.remove()


async def test_after_a_restart_the_containers_are_found_again(rig: Rig) -> None:
    ended = await running(rig, "c1", "sleep", "1000")
    await ended.stop(signal=9)
    assert await ended.exit_code() == 137
    ends = await running(rig, "c2", "sh", "-c", "echo before; sleep 0.3; echo after; exit 9")
    await wait_for(ends.stdout, b"before\n")
    stays = await running(rig, "c3", "sleep", "1000")
    pids = list(rig.daemons)
    for container in (ended, ends, stays):
        container.restart()
    # The container exits while no manager is connected; its second line has no reader.
    await wait_dead(ends)
    await ends.update_status()  # connects, and opens the fifo for reading
    # The exit is published after the output was read, which is later than the death.
    assert await ends.exit_code() == 9
    statuses: list[StateResponse] = [
        await container.update_status() for container in (ended, ends, stays)
    ]
    assert [s.status for s in statuses] == [
        process_pb2.STOPPED,
        process_pb2.STOPPED,
        process_pb2.RUNNING,
    ]
    assert [s.exit_status for s in statuses] == [137, 9, 0]
    assert rig.daemons == pids, "a restart starts no shim"
    await wait_for(ends.stdout, b"after\n")
    assert await stays.is_alive()
    await stays.stop(signal=9)
    for container in (ended, ends, stays):
        assert await container.exit_code() in (137, 9)
        await container.remove()
    await wait_gone(pids)


async def test_each_container_has_its_own_shim_without_the_annotation(rig: Rig) -> None:
    containers = [await running(rig, name, "sleep", "1000") for name in ("pod", "c1")]
    assert len({container.address for container in containers}) == 2
    assert len(rig.daemons) == 2
    for container in reversed(containers):
        await container.stop(signal=9)
        await container.remove()
    await wait_gone(rig.daemons)


async def test_with_the_annotation_a_sandbox_and_its_containers_share_one(rig: Rig) -> None:
    """CRI-O's calls for one container must not affect the others of the shim."""
    names = ("pod", "c1", "c2")
    sandbox, *others = [await running(rig, name, "sleep", "1000", sandbox="pod") for name in names]
    address = socket_address("", "default", unique(rig, "pod"))
    for container in (sandbox, *others):
        assert container.address == address
        assert (container.bundle / "address").read_text() == address
    assert len(rig.daemons) == 1
    # Removing one container sends Shutdown to the shim of all.
    await others[0].stop(signal=9)
    await others[0].remove()
    assert await others[1].is_alive()
    # A container that starts again in the pod joins the same shim.
    again = await running(rig, "c3", "sh", "-c", "exit 4", sandbox="pod")
    assert (again.address, await again.exit_code()) == (address, 4)
    await again.remove()
    # A restarted CRI-O has a connection for each, to the same shim.
    for container in (sandbox, others[1]):
        container.restart()
        assert (await container.update_status()).status == process_pb2.RUNNING
    for container in (others[1], sandbox):
        await container.stop(signal=9)
        await container.remove()
    await wait_gone(rig.daemons)


async def test_a_fork_server_takes_its_arguments_as_they_are(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them is empty."""
    servers = rig.root / "servers"
    monkeypatch.setenv("TRIO_SHIM_FORKSERVER", "on")
    monkeypatch.setenv("TRIO_SHIM_FORKSERVER_DIR", str(servers))
    first = CrioContainer(rig, crio_bundle(rig, "c1", "true"))
    await first.start_daemon()
    with trio.fail_after(20):
        while not any(can_connect(f"unix://{path}") for path in servers.glob("*")):
            await trio.sleep(0.02)
    second = await running(rig, "c2", "sh", "-c", "exit 8")
    assert second.address == socket_address("", "default", second.id)
    parent = Path(f"/proc/{rig.daemons[1]}/stat").read_text().rpartition(")")[2].split()[1]
    assert Path(f"/proc/{parent}/comm").read_text() == "trio-shim-fork\n"
    assert await second.exit_code() == 8
    assert b"event" not in second.log


async def test_a_reader_of_its_log_that_is_gone_blocks_no_shim(rig: Rig) -> None:
    container = await running(rig, "c1", "sleep", "1000")
    container.restart()
    await container.update_status()
    with trio.fail_after(30):
        # Each refusal is a line of the log; 64 KiB of them are more than a fifo holds.
        for _ in range(1000):
            with pytest.raises(GRPCError):
                await container.task.Kill(
                    KillRequest(id=container.id, exec_id="none" * 19, signal=1)
                )
    assert (await container.exec_sync("true")).code == 0


async def test_a_create_that_fails_can_be_removed_and_shut_down(rig: Rig) -> None:
    container = CrioContainer(rig, crio_bundle(rig, "c1", "/no/such/program"))
    await container.start_daemon()
    with pytest.raises(GRPCError, match="no such file"):
        await container.create()
    # CRI-O cleans up by force: errors do not count, the shim's end does.
    with pytest.raises(GRPCError) as caught:
        await container.remove()
    assert caught.value.status is Status.NOT_FOUND
    await container.shut_down()
    await wait_gone(rig.daemons)


async def wait_for(output: bytearray, text: bytes, seconds: float = 20) -> None:
    with trio.fail_after(seconds):
        while text not in output:
            await trio.sleep(0.01)


async def wait_dead(container: CrioContainer) -> None:
    """Wait until a container's init has ended, without asking its shim."""
    pid = int((container.bundle / "init.pid").read_text())
    with trio.fail_after(20):
        while alive(pid):
            await trio.sleep(0.01)


@pytest.mark.parametrize("own", [True, False])
async def test_an_exec_has_the_terminal_of_its_request_and_not_the_containers(
    rig: Rig, own: bool
) -> None:
    def change(config: dict[str, Any]) -> None:
        config["process"]["terminal"] = own

    container = await running(rig, "c1", "sleep", "1000", change=change)
    script = ("sh", "-c", "test -t 1 && echo tty || echo pipe")
    result = await container.exec_sync(*script, terminal=not own)
    assert (result.code, result.stdout.strip()) == (0, b"pipe" if own else b"tty")


@pytest.mark.parametrize("signal", [15, 9])
async def test_after_a_restart_a_container_that_has_ended_can_be_stopped_and_removed(
    rig: Rig, signal: int
) -> None:
    container = await running(rig, "c1", "sh", "-c", "exit 3")
    assert await container.exit_code() == 3
    container.restart()
    await container.update_status()
    await container.stop(signal=signal)
    assert (await container.update_status()).exit_status == 3
    # Whether a process lives, and other signals, are still answered as they are.
    assert not await container.is_alive()
    with pytest.raises(GRPCError) as caught:
        await container.task.Kill(KillRequest(id=container.id, signal=1), timeout=5)
    assert caught.value.status is Status.NOT_FOUND
    await container.remove()
    await wait_gone(rig.daemons)


async def test_an_exec_that_has_ended_can_be_killed_and_one_that_never_was_cannot(
    rig: Rig,
) -> None:
    container = await running(rig, "c1", "sleep", "1000")
    result = await container.exec_sync("true")
    assert result.code == 0
    for exec_id in ("exec1", "never"):
        kill = KillRequest(id=container.id, exec_id=exec_id, signal=9)
        with pytest.raises(GRPCError) as caught:
            await container.task.Kill(kill, timeout=5)
        assert caught.value.status is Status.NOT_FOUND
