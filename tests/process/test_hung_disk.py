"""A disk that hangs stops the streams that go there, and nothing else."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api.task_pb2 import (
    DeleteRequest,
    KillRequest,
    ShutdownRequest,
    WaitRequest,
)
from shim.errors import UnavailableError
from shim.linux import fifos
from shim.ttrpc.calls import ConnectionLostError
from tests.e2e.waiting import PATIENCE
from tests.frozen import FreezableDisk, file_helpers
from tests.process.hung import answers, soon, wait_thread_stuck
from tests.process.rig import Rig, alive, wait_gone
from tests.process.steps import wait_path
from tests.process.test_members import Pod
from tests.process.test_stuck import BEFORE
from tests.process.test_stuck import wait_stuck as wait_runtime_stuck

pytestmark = pytest.mark.e2e

WRITER = "trap '' PIPE; i=0; while :; do i=$((i+1)); echo $i; done"


async def wait_stuck(rig: Rig) -> int:
    """Wait until a process that copies to a file waits for its disk; return its pid."""
    with trio.fail_after(10 * PATIENCE):
        while True:
            for pid in file_helpers(rig.root):
                with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                    if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "D":
                        return pid
            await trio.sleep(0.01)


@pytest.mark.parametrize("kind", ["file://", "", "terminal"])
async def test_a_hung_log_disk_holds_up_no_call(rig: Rig, disk: FreezableDisk, kind: str) -> None:
    log = disk.path / "deep" / "log" if kind == "file://" else disk.path / "log"
    if kind != "file://":
        log.touch()
    terminal = kind == "terminal"

    def change(config: dict[str, Any]) -> None:
        config["process"]["terminal"] = terminal

    bundle = rig.bundle("c1", "sh", "-c", WRITER, change=change)
    task = await rig.start(bundle)
    uri = f"file://{log}" if kind == "file://" else str(log)
    created = await rig.run(task, bundle, stdout=uri, terminal=terminal)
    disk.freeze()
    stuck = await wait_stuck(rig)
    for number in range(3):
        await answers(rig, task, "c1", number)
    with soon("Kill"):
        await task.Kill(KillRequest(id="c1", signal=9), timeout=5)
    with soon("Wait"):
        ended = await task.Wait(WaitRequest(id="c1"), timeout=5)
    assert ended.exit_status == 137
    assert not alive(created.pid)
    before = time.monotonic()
    await task.Delete(DeleteRequest(id="c1"), timeout=30)
    assert time.monotonic() - before < 15 * PATIENCE
    assert alive(stuck)
    with soon("Shutdown"):
        await task.Shutdown(ShutdownRequest(id="c1"), timeout=5)
    await wait_gone(rig.daemons, seconds=3)
    assert rig.sink.names("c1")[-2:] == ["exit c1", "delete"]
    disk.thaw()
    await wait_gone([stuck])
    assert not file_helpers(rig.root)
    assert not list(rig.runc_root.glob("*/*"))


async def test_other_containers_of_the_pod_live_and_die_while_a_log_disk_hangs(
    rig: Rig, disk: FreezableDisk
) -> None:
    pod = await Pod.start(rig)
    task = pod.task
    bundle = rig.bundle("c2", "sh", "-c", WRITER)
    await rig.run(task, bundle, stdout=f"file://{disk.path}/log")
    disk.freeze()
    stuck = await wait_stuck(rig)
    for id_ in ("c1", "c2"):
        await answers(rig, task, id_, 1)
    other = rig.bundle("c3", "sh", "-c", "exit 5")
    with soon("a life"):
        await rig.run(task, other)
        ended = await task.Wait(WaitRequest(id="c3"), timeout=5)
        await task.Delete(DeleteRequest(id="c3"), timeout=5)
    assert ended.exit_status == 5
    # Nothing is lost to the freeze: the bytes that the process could write are in the file.
    disk.thaw()
    await task.Kill(KillRequest(id="c2", signal=9), timeout=5)
    await task.Wait(WaitRequest(id="c2"), timeout=5)
    await task.Delete(DeleteRequest(id="c2"), timeout=20)
    numbers = (disk.path / "log").read_text().split("\n")[:-1]
    assert numbers == [str(n) for n in range(1, len(numbers) + 1)]
    await wait_gone([stuck])
    assert not file_helpers(rig.root)


async def test_a_create_whose_log_cannot_be_opened_fails_at_its_bound(
    rig: Rig, disk: FreezableDisk
) -> None:
    pod = await Pod.start(rig)
    task = pod.task
    bundle = rig.bundle("c2", "sleep", "1000")
    disk.freeze()
    refused: list[GRPCError] = []

    async def create() -> None:
        with pytest.raises(GRPCError) as caught:
            await rig.run(task, bundle, stdout=f"file://{disk.path}/new/log")
        refused.append(caught.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(create)
        stuck = await wait_stuck(rig)
        await answers(rig, task, "c1", 1)
        assert not refused
    assert refused[0].status is Status.DEADLINE_EXCEEDED
    assert "new/log" in (refused[0].message or "")
    disk.thaw()
    await wait_gone([stuck])
    assert not list(rig.runc_root.glob("*/c2"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_daemon_ends_though_its_log_disk_hangs(
    rig: Rig, disk: FreezableDisk, number: signal.Signals
) -> None:
    bundle = rig.bundle("c1", "sh", "-c", WRITER)
    task = await rig.start(bundle)
    await rig.run(task, bundle, stdout=f"file://{disk.path}/log")
    disk.freeze()
    stuck = await wait_stuck(rig)
    pidfd = os.pidfd_open(rig.daemons[0])
    try:
        os.kill(rig.daemons[0], number)
        with trio.fail_after(5 * PATIENCE):
            await trio.lowlevel.wait_readable(pidfd)
        with pytest.raises(UnavailableError):
            await rig.connect()
        # The container's output still reaches the file, though the daemon is gone.
        disk.thaw()
        size = (disk.path / "log").stat().st_size
        with trio.fail_after(10 * PATIENCE):
            while (disk.path / "log").stat().st_size <= size:
                await trio.sleep(0.01)
    finally:
        os.close(pidfd)
    await rig.end()
    await wait_gone([stuck])


@pytest.mark.parametrize("policy", ["drop", "spool"])
async def test_under_drop_and_spool_no_process_waits_for_a_hung_disk(
    rig: Rig, disk: FreezableDisk, policy: str
) -> None:
    def change(config: dict[str, Any]) -> None:
        config["annotations"] = {
            "io.trio-shim.output": policy,
            "io.trio-shim.output-limit": "64KiB",
        }

    script = "while ! [ -e /go ]; do sleep 0.02; done; dd if=/dev/zero bs=1M count=16; touch /done"
    bundle = rig.bundle("c1", "sh", "-c", f"echo begin; {script}; exec sleep 1000", change=change)
    task = await rig.start(bundle)
    await rig.run(task, bundle, stdout=f"file://{disk.path}/log")
    with trio.fail_after(10 * PATIENCE):
        while (disk.path / "log").read_bytes() != b"begin\n":
            await trio.sleep(0.01)
    disk.freeze()
    (rig.rootfs() / "go").touch()
    await wait_path(rig.rootfs() / "done")
    disk.thaw()
    with trio.fail_after(10 * PATIENCE):
        while b"bytes of output dropped]" not in (disk.path / "log").read_bytes():
            await trio.sleep(0.01)


async def test_a_daemon_without_file_streams_has_no_helper(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    os.mkfifo(rig.root / "out")
    await rig.run(task, bundle, stdout=str(rig.root / "out"))
    assert not file_helpers(rig.root)
    assert len(os.listdir(f"/proc/{rig.daemons[0]}/task")) == 1


async def test_a_killed_helper_is_replaced_and_the_container_does_not_notice(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done")
    task = await rig.start(bundle)
    await rig.run(task, bundle, stdout=f"file://{rig.root}/log")
    (helper,) = file_helpers(rig.root)
    os.kill(helper, signal.SIGKILL)
    await wait_gone([helper])
    size = (rig.root / "log").stat().st_size
    with trio.fail_after(10 * PATIENCE):
        while (rig.root / "log").stat().st_size <= size:
            await trio.sleep(0.01)
    await task.Kill(KillRequest(id="c1", signal=9), timeout=5)
    await task.Wait(WaitRequest(id="c1"), timeout=5)
    await task.Delete(DeleteRequest(id="c1"), timeout=20)
    # Bytes that it held when it was killed are lost; none is doubled or moved.
    numbers = [int(word) for word in (rig.root / "log").read_text().split()]
    assert numbers == sorted(set(numbers))
    assert not file_helpers(rig.root)


async def test_a_daemon_killed_in_a_create_leaves_no_helper(rig: Rig) -> None:
    mark = rig.root / "stuck"
    wrapper = rig.wrapper("wrapper", BEFORE.format(verb="create", mark=mark))
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)

    async def create() -> None:
        options = rig.options(binary_name=wrapper)
        request = rig.create_request(bundle, options=options, stdout=f"file://{rig.root}/log")
        with pytest.raises((GRPCError, ConnectionLostError)):
            await task.Create(request, timeout=30)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(create)
        runtime = await wait_runtime_stuck(mark)
        (helper,) = file_helpers(rig.root)
        os.kill(rig.daemons[0], signal.SIGKILL)
    os.kill(runtime, signal.SIGKILL)
    await wait_gone([helper])


async def test_a_process_that_reads_a_file_does_not_hold_it(rig: Rig) -> None:
    (rig.root / "input").write_text("from a file\n")
    (rig.root / "input").chmod(0o600)
    script = "cat; chmod 4777 /proc/self/fd/0; exit 6"
    bundle = rig.bundle("c1", "sh", "-c", script)
    task = await rig.start(bundle)
    await rig.run(task, bundle, stdin=f"{rig.root}/input", stdout=f"file://{rig.root}/log")
    ended = await task.Wait(WaitRequest(id="c1"), timeout=20)
    assert ended.exit_status == 6
    await task.Delete(DeleteRequest(id="c1"), timeout=20)
    assert (rig.root / "log").read_text() == "from a file\n"
    assert (rig.root / "input").stat().st_mode & 0o7777 == 0o600


# -- the spool -------------------------------------------------------------------


@pytest.mark.parametrize("before", [2, 4], ids=["not begun", "begun"])
async def test_a_hung_spool_disk_holds_up_no_call_and_no_process(
    rig: Rig, disk: FreezableDisk, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """The pipe and the fifo hold 2 MiB: further bytes begin the spool."""
    settings = rig.root / "trio-shim.toml"
    settings.write_text(f'[output]\npolicy = "spool"\ndirectory = "{disk.path}/spool"\n')
    monkeypatch.setenv("TRIO_SHIM_CONFIG", str(settings))
    script = (
        f"dd if=/dev/zero bs=1M count={before}; touch /begun; "
        "while ! [ -e /go ]; do sleep 0.02; done; "
        "dd if=/dev/zero bs=1M count=12; touch /done; exec sleep 1000"
    )
    bundle = rig.bundle("c1", "sh", "-c", script)
    task = await rig.start(bundle)
    os.mkfifo(rig.root / "out")
    await rig.run(task, bundle, stdout=str(rig.root / "out"))
    await wait_path(rig.rootfs() / "begun")
    disk.freeze()
    (rig.rootfs() / "go").touch()
    await wait_thread_stuck(rig.daemons[0])
    for number in range(2):
        await answers(rig, task, "c1", number)
    await wait_path(rig.rootfs() / "done")
    await answers(rig, task, "c1", 2)
    disk.thaw()
    received = b""
    out = fifos.open_reader(str(rig.root / "out"))
    try:
        with trio.fail_after(20 * PATIENCE):
            while b"bytes of output dropped]\n" not in received:
                await trio.lowlevel.wait_readable(out.number)
                with suppress(BlockingIOError):
                    received += os.read(out.number, 1 << 20)
    finally:
        out.close()
    kept, _, after = received.partition(b"[trio-shim: ")
    dropped = int(after.split()[0])
    assert kept.count(b"\0") + dropped == (before + 12) << 20
