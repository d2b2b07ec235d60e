"""Output of real containers through the whole shim: every byte, with any reader or without
one.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api.task_pb2 import DeleteRequest, KillRequest, StartRequest, StateRequest, WaitRequest
from shim.linux import fifos
from tests.e2e.waiting import PATIENCE
from tests.process.configs import host_pids
from tests.stdio.conftest import read_all, read_some, read_until, write_all
from tests.stdio.whole.client import (
    MIB,
    WAIT_FOR_GO,
    Digest,
    Streams,
    close_stdin,
    digest_to_end,
    ended,
    put_data,
    wait_asleep,
    wait_until,
)

if TYPE_CHECKING:
    from shim.api.task_grpc import TaskStub
    from shim.linux.fifos import Fd
    from tests.process.rig import Rig


async def wait_still(fd: Fd, *, seconds: float = 0.001) -> None:
    """Wait until nothing more is added to a pipe."""
    before = -1
    while (now := fifos.unread(fd)) != before:
        before = now
        await trio.sleep(seconds)


async def digest_slowly(fd: Fd) -> Digest:
    """Read to the end, each time only once the writer is blocked."""
    digest = Digest()
    while True:
        await wait_still(fd)
        data = await read_some(fd, MIB)
        if not data:
            fd.close()
            return digest
        digest.add(data)


async def test_a_hundred_mebibytes_reach_a_slow_reader_and_stderr_stays_apart(rig: Rig) -> None:
    data, errors = put_data(rig, "data", 100), put_data(rig, "errors", 10)
    streams = Streams(rig, "c1")
    out, err = streams.reader("stdout"), streams.reader("stderr")
    bundle = rig.bundle("c1", "sh", "-c", "cat /errors >&2 & cat /data; wait")
    task = await rig.start(bundle)
    await rig.run(task, bundle, **streams.fields("stdout", "stderr"))
    got = {}

    async def read(name: str, fd: Fd) -> None:
        got[name] = await digest_slowly(fd)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, "out", out)
            nursery.start_soon(read, "err", err)
    assert got == {"out": data, "err": errors}
    assert await ended(task, "c1") == 0


async def test_a_reader_that_comes_and_goes_misses_nothing_and_gets_nothing_twice(
    rig: Rig,
) -> None:
    """The bytes that a reader left in the fifo reach the next one."""
    data = put_data(rig, "data", 12)
    streams = Streams(rig, "c1")
    bundle = rig.bundle("c1", "cat", "/data")
    task = await rig.start(bundle)
    created = await rig.run(task, bundle, **streams.fields("stdout"))
    got = Digest()
    with trio.fail_after(30):
        for part in (1, 70_001, MIB, 2 * MIB + 17, 4095):
            await wait_asleep(created.pid)  # without a reader: it can only wait
            out = streams.reader()
            got.add(await read_until(out, part))
            out.close()
        await wait_asleep(created.pid)
        got.add(await read_all(streams.reader()))
    assert got == data
    assert await ended(task, "c1") == 0


async def test_with_nobody_reading_or_writing_the_shim_does_not_even_wake_up(rig: Rig) -> None:
    streams = Streams(rig, "c1")
    bundle = rig.bundle("c1", "yes")
    task = await rig.start(bundle)
    pids = [(await rig.run(task, bundle, **streams.fields("stdout", "stderr"))).pid]
    clients = []
    for exec_id, script in (("deaf", "echo; exec sleep 1000"), ("loud", "echo; exec yes")):
        for terminal in (False, True):
            name = f"{exec_id}-{terminal}"
            script = f"stty raw -echo; {script}" if terminal else script
            streams = Streams(rig, name)
            fields = streams.fields("stdin", "stdout") | {"terminal": terminal}
            request = rig.exec_request("c1", name, "sh", "-c", script, **fields)
            await task.Exec(request, timeout=10)
            out = streams.reader()
            reply = await task.Start(StartRequest(id="c1", exec_id=name), timeout=20)
            with trio.fail_after(20):
                assert await read_until(out, 1) == b"\n"
            out.close()
            pids.append(reply.pid)
            clients.append(streams.writer())
            with trio.move_on_after(0.2):
                await write_all(clients[-1], bytes(8 * MIB))  # without a receiver
    for pid in pids:
        await wait_asleep(pid)
    (daemon,) = rig.daemons
    await wait_asleep(daemon)
    before = switches(daemon)
    await trio.sleep(1)  # this is the measurement
    assert switches(daemon) == before
    for client in clients:
        client.close()


def switches(pid: int) -> list[str]:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return [line for line in status if "ctxt_switches" in line]


async def test_a_manager_that_is_killed_can_be_followed_by_another(rig: Rig) -> None:
    streams = Streams(rig, "c1")
    bundle = rig.bundle("c1", "sh", "-c", "seq 2000000; cat")
    task = await rig.start(bundle)
    # It has the stdin open too, and takes output until its own is not taken.
    manager = f"exec 7<>{streams.path('stdin')}; exec cat {streams.path('stdout')}"
    process = await trio.lowlevel.open_process(["sh", "-c", manager], stdout=subprocess.PIPE)
    await rig.run(task, bundle, **streams.fields("stdin", "stdout"))
    received, rest = bytearray(), bytearray()
    assert process.stdout is not None
    with trio.fail_after(30):
        while len(received) < MIB:
            received += await process.stdout.receive_some()
        process.kill()
        async for data in process.stdout:
            received += data
        await process.wait()
        out = streams.reader()
        client = streams.writer()
        await write_all(client, b"and more")
        client.close()
        await task.CloseIO(close_stdin("c1"), timeout=5)
        rest += await read_all(out)
    whole = b"".join(b"%d\n" % i for i in range(1, 2_000_001)) + b"and more"
    assert whole.startswith(received)
    assert whole.endswith(rest)
    # Between the two are the bytes that the first had read when it died.
    assert 0 <= len(whole) - len(received) - len(rest) <= 128 << 10
    assert await ended(task, "c1") == 0


async def test_a_manager_that_asks_after_the_exit_has_the_end_of_the_output_soon(rig: Rig) -> None:
    """After an absence of any length: containerd reads to the end before it calls Delete."""
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    streams = {name: Streams(rig, name) for name in ("state", "wait")}
    for name, each in streams.items():
        request = rig.exec_request("c1", name, "echo", name, **each.fields("stdout"))
        await task.Exec(request, timeout=10)
        await task.Start(StartRequest(id="c1", exec_id=name), timeout=20)
        await task.Wait(WaitRequest(id="c1", exec_id=name), timeout=20)
    await trio.sleep(5)  # the manager is away; the next look would be in some seconds
    for name, each in streams.items():
        out = each.reader()
        if name == "state":
            await task.State(StateRequest(id="c1", exec_id=name), timeout=5)
        else:
            await task.Wait(WaitRequest(id="c1", exec_id=name), timeout=5)
        with trio.fail_after(PATIENCE):
            assert await read_all(out) == f"{name}\n".encode()
        assert await ended(task, "c1", name) == 0


@pytest.mark.parametrize("child", ["sleep 1000", "yes"])
async def test_a_background_child_with_the_output_delays_neither_exit_nor_delete(
    rig: Rig, child: str
) -> None:
    streams = Streams(rig, "e1")
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    out = streams.reader()
    script = f"seq 100000; {child} & exit 5"
    request = rig.exec_request("c1", "e1", "sh", "-c", script, **streams.fields("stdout"))
    await task.Exec(request, timeout=10)
    expected = b"".join(b"%d\n" % i for i in range(1, 100_001))
    await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=20)
    received = []

    async def read() -> None:
        received.append(await read_until(out, len(expected)))
        await digest_to_end(out)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            assert await ended(task, "c1", "e1", seconds=8) == 5
    assert received == [expected]


async def test_the_last_words_of_an_init_whose_children_live_on_arrive(rig: Rig) -> None:
    streams = Streams(rig, "c1")
    out = streams.reader()
    script = "sleep 1000 & seq 100000; exit 6"
    bundle = rig.bundle("c1", "sh", "-c", script, change=host_pids)
    task = await rig.start(bundle)
    await rig.run(task, bundle, **streams.fields("stdout"))
    expected = b"".join(b"%d\n" % i for i in range(1, 100_001))
    with trio.fail_after(20):
        assert await read_all(out) == expected
    assert await ended(task, "c1", seconds=8) == 6


async def exec_with_unread_output(rig: Rig) -> tuple[TaskStub, Fd]:
    """Run the exec e1 of c1 to its exit, with more output than fits into its fifo.

    Return the client, and the fifo's read end, which no one reads.
    """
    streams = Streams(rig, "e1")
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    script = f"yes & {WAIT_FOR_GO}; exit 7"
    request = rig.exec_request("c1", "e1", "sh", "-c", script, **streams.fields("stdout"))
    await task.Exec(request, timeout=10)
    out = streams.reader()
    await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=20)
    with trio.fail_after(20):
        await wait_until(lambda: fifos.unread(out))
        await wait_still(out, seconds=0.1)
    (rig.rootfs() / "go").touch()
    await task.Wait(WaitRequest(id="c1", exec_id="e1"), timeout=8)
    return task, out


async def test_a_delete_that_nobody_reads_for_takes_its_ten_seconds_and_no_more(rig: Rig) -> None:
    task, out = await exec_with_unread_output(rig)
    began = time.monotonic()
    assert await ended(task, "c1", "e1") == 7
    assert 9 < time.monotonic() - began < 10 + 5 * PATIENCE
    out.close()


async def test_a_delete_without_a_reader_succeeds_before_the_callers_deadline(rig: Rig) -> None:
    """A containerd 1.6 that starts gives a Delete ten seconds, or loses the container."""
    task, out = await exec_with_unread_output(rig)
    deleted = await task.Delete(DeleteRequest(id="c1", exec_id="e1"), timeout=5)
    assert deleted.exit_status == 7
    out.close()


async def kill_exited(task: TaskStub) -> None:
    with pytest.raises(GRPCError) as caught:
        await task.Kill(KillRequest(id="c1", exec_id="e1", signal=9), timeout=10)
    assert caught.value.status is Status.NOT_FOUND


async def test_a_sigkill_after_the_exit_is_answered_when_the_output_is_read(rig: Rig) -> None:
    """containerd sends it before it closes the fifos that it has not opened, or not read."""
    task, out = await exec_with_unread_output(rig)
    answered = trio.Event()

    async def kill() -> None:
        await kill_exited(task)
        answered.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill)
        with trio.move_on_after(0.5):
            await answered.wait()
        await read_some(out)
        with trio.move_on_after(0.5):
            await answered.wait()
        assert not answered.is_set()
        with trio.fail_after(2 * PATIENCE):
            while not answered.is_set():  # a child of the exec still writes
                await read_some(out)
    out.close()


async def test_a_sigkill_after_the_exit_is_answered_although_no_output_is_read(rig: Rig) -> None:
    task, out = await exec_with_unread_output(rig)
    with trio.fail_after(2 + PATIENCE):
        await kill_exited(task)
    out.close()


async def test_a_delete_waits_for_a_reader_that_is_only_slow(rig: Rig) -> None:
    data = os.urandom(3 * MIB // 2)  # more than fits into the reader's fifo
    (rig.rootfs() / "data").write_bytes(data)
    streams = Streams(rig, "e1")
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    out = streams.reader()
    request = rig.exec_request("c1", "e1", "cat", "/data", **streams.fields("stdout"))
    await task.Exec(request, timeout=10)
    await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=20)
    await task.Wait(WaitRequest(id="c1", exec_id="e1"), timeout=20)
    deleted = trio.Event()

    async def delete() -> None:
        assert await ended(task, "c1", "e1") == 0
        deleted.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(delete)
        with trio.move_on_after(0.5):
            await deleted.wait()
        assert not deleted.is_set()
        with trio.fail_after(8 * PATIENCE):
            assert await read_all(out) == data


async def test_a_fifo_that_is_removed_still_delivers_and_a_new_one_serves_the_next(
    rig: Rig,
) -> None:
    streams = Streams(rig, "c1")
    out = streams.reader()
    bundle = rig.bundle("c1", "sh", "-c", f"{WAIT_FOR_GO}; echo heard; sleep 1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle, **streams.fields("stdout"))
    path = Path(streams.path("stdout"))
    path.unlink()
    (rig.rootfs() / "go").touch()
    with trio.fail_after(10):
        assert await read_until(out, 6) == b"heard\n"
    out.close()
    await task.Exec(rig.exec_request("c1", "e1", "echo", "hi", stdout=str(path)), timeout=10)
    with pytest.raises(GRPCError, match=str(path)):
        await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=20)
    os.mkfifo(path)
    again = streams.reader()
    await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=20)
    with trio.fail_after(10):
        assert await read_all(again) == b"hi\n"
    assert await ended(task, "c1", "e1") == 0
