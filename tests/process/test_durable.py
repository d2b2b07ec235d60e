"""Data that outlives the shim: the exit of each process, and undelivered events."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from grpclib.exceptions import GRPCError

from shim.api import process_pb2
from shim.api.task_pb2 import (
    DeleteRequest,
    DeleteResponse,
    KillRequest,
    ShutdownRequest,
    StartRequest,
    StateRequest,
    WaitRequest,
)
from shim.exit import Exit
from shim.linux import sockets
from shim.linux.sockets import listen
from shim.records import exit_file, read_exit
from tests.e2e.leftovers import processes
from tests.e2e.waiting import PATIENCE
from tests.events.disks import mounted
from tests.process.oracle import Oracle
from tests.process.rig import NAMESPACE, Rig, wait_gone
from tests.process.steps import kill_daemon
from tests.process.test_delete import delete
from tests.process.test_members import Pod

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shim.api.task_grpc import TaskStub

pytestmark = pytest.mark.e2e
HELD = "while ! [ -e /go-{0} ]; do sleep 0.02; done; exit {1}"


@contextmanager
def away(rig: Rig) -> Iterator[None]:
    """The manager takes no calls in the block."""
    here, aside = rig.root / "events", rig.root / "aside"
    here.rename(aside)
    yield
    if aside.exists():
        aside.rename(here)


async def run_exec(rig: Rig, task: TaskStub, id_: str, exec_id: str, script: str) -> Exit:
    """Run an exec to its end; return the expected record."""
    await task.Exec(rig.exec_request(id_, exec_id, "sh", "-c", script), timeout=10)
    started = await task.Start(StartRequest(id=id_, exec_id=exec_id), timeout=20)
    ended = await task.Wait(WaitRequest(id=id_, exec_id=exec_id), timeout=20)
    return Exit(started.pid, ended.exit_status, ended.exited_at.ToNanoseconds())


async def run_to_end(rig: Rig, task: TaskStub, bundle: Path) -> Exit:
    """Run a container to its end; return the expected record."""
    created = await rig.run(task, bundle)
    ended = await task.Wait(WaitRequest(id=bundle.name), timeout=20)
    return Exit(created.pid, ended.exit_status, ended.exited_at.ToNanoseconds())


def record_of(reply: DeleteResponse) -> Exit:
    return Exit(reply.pid, reply.exit_status, reply.exited_at.ToNanoseconds())


# -- records ---------------------------------------------------------------------


async def test_an_exit_is_on_disk_before_anybody_is_told(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sh", "-c", "echo unread; exit 7")
    task = await rig.start(bundle)
    os.mkfifo(rig.root / "out")
    # A reader that does not read delays the event, and not the record.
    reader = os.open(rig.root / "out", os.O_RDONLY | os.O_NONBLOCK)
    try:
        created = await rig.run(task, bundle, stdout=str(rig.root / "out"))
        with trio.fail_after(20 * PATIENCE):
            while read_exit(str(bundle)) is None:
                await trio.sleep(0.001)
        state = await task.State(StateRequest(id="c1"), timeout=5)
        assert state.status == process_pb2.RUNNING
        assert "exit c1" not in rig.sink.names()
    finally:
        os.close(reader)
    ended = await task.Wait(WaitRequest(id="c1"), timeout=30)
    told = Exit(created.pid, 7, ended.exited_at.ToNanoseconds())
    assert read_exit(str(bundle)) == told


async def test_every_process_has_its_own_record_for_as_long_as_it_is_there(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    created = await rig.run(task, bundle)
    for exec_id, code in (("e1", 3), ("e2", 4)):
        told = await run_exec(rig, task, "c1", exec_id, f"exit {code}")
        assert read_exit(str(bundle), exec_id) == told
        assert told.exit_status == code
    await task.Delete(DeleteRequest(id="c1", exec_id="e1"), timeout=10)
    assert read_exit(str(bundle), "e1") is None
    assert read_exit(str(bundle)) is None
    await task.Kill(KillRequest(id="c1", signal=9), timeout=10)
    ended = await task.Wait(WaitRequest(id="c1"), timeout=20)
    await task.Delete(DeleteRequest(id="c1"), timeout=20)
    assert read_exit(str(bundle), "e2") is None
    # Its manager may be gone before it removes the bundle.
    told = Exit(created.pid, 137, ended.exited_at.ToNanoseconds())
    assert read_exit(str(bundle)) == told
    assert [path.name for path in bundle.glob("*.exit")] == ["init.exit"]


async def test_an_exec_of_the_same_name_starts_without_the_record_of_the_last(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    Path(exit_file(str(bundle), "e1")).write_text("left by a shim that was killed")
    await task.Exec(rig.exec_request("c1", "e1", "sleep", "1000"), timeout=10)
    await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=20)
    assert not Path(exit_file(str(bundle), "e1")).exists()


async def test_a_container_made_anew_in_its_bundle_has_not_ended(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sh", "-c", HELD.format(1, 7))
    task = await rig.start(bundle)
    (rig.rootfs() / "go-1").touch()
    await run_to_end(rig, task, bundle)
    await task.Delete(DeleteRequest(id="c1"), timeout=20)
    assert read_exit(str(bundle)) is not None
    (rig.rootfs() / "go-1").unlink()
    created = await rig.run(task, bundle)
    assert read_exit(str(bundle)) is None
    await kill_daemon(rig)
    reply = await delete(rig, bundle)
    assert (reply.pid, reply.exit_status) == (created.pid, 137)


async def test_a_creation_that_fails_early_leaves_no_earlier_end_behind(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sh", "-c", "exit 7")
    task = await rig.start(bundle)
    await run_to_end(rig, task, bundle)
    await task.Delete(DeleteRequest(id="c1"), timeout=20)
    with pytest.raises(GRPCError, match="nowhere"):
        await rig.run(task, bundle, stdout=str(rig.root / "nowhere"))
    await kill_daemon(rig)
    reply = await delete(rig, bundle)
    assert (reply.pid, reply.exit_status) == (0, 137)


async def test_delete_says_how_it_really_ended_though_the_shim_is_gone(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sh", "-c", "exit 7")
    task = await rig.start(bundle)
    told = await run_to_end(rig, task, bundle)
    assert told.exit_status == 7
    await kill_daemon(rig)
    for _ in range(3):
        assert record_of(await delete(rig, bundle)) == told


@pytest.mark.parametrize("damage", ["cut", "garbage", "huge", "fifo"])
async def test_delete_says_137_where_the_record_is_none(rig: Rig, damage: str) -> None:
    bundle = rig.bundle("c1", "sh", "-c", "exit 7")
    task = await rig.start(bundle)
    told = await run_to_end(rig, task, bundle)
    await kill_daemon(rig)
    record = Path(exit_file(str(bundle)))
    match damage:
        case "cut":
            record.write_bytes(record.read_bytes()[:-1])
        case "garbage":
            record.write_bytes(os.urandom(100))
        case "huge":
            os.truncate(record, 1 << 40)
        case "fifo":
            record.unlink()
            os.mkfifo(record)
    reply = await delete(rig, bundle)
    assert (reply.pid, reply.exit_status) == (told.pid, 137)
    assert abs(reply.exited_at.seconds - time.time()) < 60


async def test_with_a_full_disk_containers_live_and_die_as_ever(rig: Rig) -> None:
    with mounted(rig.root / "c1", 1 << 20) as disk:
        bundle = bundle_on(rig, disk.path)
        task = await rig.start(bundle)
        await rig.run(task, bundle)
        disk.fill()
        (rig.rootfs() / "go-1").touch()
        ended = await task.Wait(WaitRequest(id="c1"), timeout=20)
        assert ended.exit_status == 7
        reply = await task.Delete(DeleteRequest(id="c1"), timeout=20)
        assert reply.exit_status == 7
        await rig.sink.wait_for("delete")
        assert rig.sink.names() == ["create", "start", "exit c1", "delete"]
        assert not list(bundle.glob(".*"))
        await rig.end()


async def test_a_start_that_cannot_write_its_address_says_where_and_leaves_no_socket(
    rig: Rig,
) -> None:
    with mounted(rig.root / "c1", 1 << 20) as disk:
        bundle = bundle_on(rig, disk.path)
        disk.fill()
        done = rig.run_shim(bundle, "-id", "c1", "start")
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.count(b"\n") == 1
        assert f"cannot write {bundle}/address: no space left on device" in done.stderr.decode()
        assert not (bundle / "address").exists()
    address = sockets.socket_address(str(rig.root / "manager"), NAMESPACE, "c1")
    assert not Path(sockets.socket_path(address)).exists()


def bundle_on(rig: Rig, path: Path) -> Path:
    """Make a bundle at ``path``, which is there already."""
    made = rig.bundle("template", "sh", "-c", HELD.format(1, 7))
    (path / "config.json").write_bytes((made / "config.json").read_bytes())
    return path


# -- events ----------------------------------------------------------------------

LIFE = ["create", "start", "exec-added", "exec-started", "exit e1", "exit c1"]


async def live_unheard(rig: Rig) -> tuple[TaskStub, Path, Exit]:
    """Have a container live and end, and an exec in it, while the manager is away."""
    bundle = rig.bundle("c1", "sh", "-c", HELD.format(1, 7))
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    await run_exec(rig, task, "c1", "e1", "exit 3")
    (rig.rootfs() / "go-1").touch()
    ended = await task.Wait(WaitRequest(id="c1"), timeout=20)
    state = await task.State(StateRequest(id="c1"), timeout=5)
    return task, bundle, Exit(state.pid, 7, ended.exited_at.ToNanoseconds())


async def test_a_manager_that_comes_back_hears_it_all_from_the_shim(rig: Rig) -> None:
    with away(rig):
        task, bundle, _ = await live_unheard(rig)
        assert rig.sink.names() == []
        assert (bundle / "events.journal").stat().st_size > 0
    await rig.sink.wait_for("exit c1")
    await task.Delete(DeleteRequest(id="c1"), timeout=20)
    await rig.sink.wait_for("delete")
    assert rig.sink.names() == [*LIFE, "delete"]
    check_order(rig)
    await task.Shutdown(ShutdownRequest(id="c1"), timeout=5)
    await wait_gone(rig.daemons)
    assert not (bundle / "events.journal").exists()
    await delete(rig, bundle)
    assert rig.sink.names() == [*LIFE, "delete"]


async def test_delete_tells_what_the_dead_shim_could_not_but_not_its_own_answer(rig: Rig) -> None:
    with away(rig):
        _, bundle, told = await live_unheard(rig)
        await kill_daemon(rig)
    for _ in range(2):
        assert record_of(await delete(rig, bundle)) == told
        # The manager publishes the other events itself, from that reply.
        assert rig.sink.names() == LIFE[:-1]


async def test_an_exit_that_the_killed_shim_recorded_is_published_by_delete(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    await run_exec(rig, task, "c1", "e1", "exit 3")
    os.mkfifo(rig.root / "out")
    # A reader that does not read delays the event, and not the record.
    reader = os.open(rig.root / "out", os.O_RDONLY | os.O_NONBLOCK)
    try:
        request = rig.exec_request("c1", "e2", "sh", "-c", "echo unread; exit 4")
        request.stdout = str(rig.root / "out")
        await task.Exec(request, timeout=10)
        await task.Start(StartRequest(id="c1", exec_id="e2"), timeout=20)
        with trio.fail_after(20 * PATIENCE):
            while read_exit(str(bundle), "e2") is None:
                await trio.sleep(0.001)
        await kill_daemon(rig)
    finally:
        os.close(reader)
    assert "exit e2" not in rig.sink.names()
    for _ in range(2):
        await delete(rig, bundle)
    assert [name for name in rig.sink.names() if "exit" in name] == ["exit e1", "exit e2"]


async def test_what_was_deleted_before_the_shim_died_is_told_whole(rig: Rig) -> None:
    with away(rig):
        task, bundle, told = await live_unheard(rig)
        await task.Delete(DeleteRequest(id="c1"), timeout=20)
        await kill_daemon(rig)
    # After the reply to Delete the manager has no such container, and publishes no exit for it.
    assert record_of(await delete(rig, bundle)) == told
    assert rig.sink.names() == [*LIFE, "delete"]
    check_order(rig)


async def test_a_manager_that_does_not_listen_yet_is_told_once_it_does(rig: Rig) -> None:
    with away(rig):
        _, bundle, told = await live_unheard(rig)
        await kill_daemon(rig)
        before = time.monotonic()
        assert record_of(await delete(rig, bundle)) == told
        assert time.monotonic() - before < 3 * PATIENCE
        # As a starting manager does, which publishes no event of an unknown task.
        for path in bundle.iterdir():
            path.unlink()
        bundle.rmdir()
    await rig.sink.wait_for("exit c1")
    assert rig.sink.names() == LIFE
    check_order(rig, deleted=False)
    with trio.fail_after(20 * PATIENCE):
        while list(processes(str(bundle), NAMESPACE, [os.getpid()])):
            await trio.sleep(0.01)


async def test_a_manager_that_hangs_costs_delete_no_more_than_a_second(rig: Rig) -> None:
    with away(rig):
        _, bundle, told = await live_unheard(rig)
        await kill_daemon(rig)
        with listen(f"unix://{rig.root}/events"):
            before = time.monotonic()
            assert record_of(await delete(rig, bundle)) == told
            assert time.monotonic() - before < 3 * PATIENCE
        (rig.root / "events").unlink()
    # No event was delivered before, so all remain except those that the manager publishes.
    await delete(rig, bundle)
    assert rig.sink.names() == LIFE[:-1]


@pytest.mark.parametrize("with_start", [False, True])
async def test_the_end_of_another_of_the_pod_is_told_unless_it_has_a_delete(
    rig: Rig, with_start: bool
) -> None:
    with away(rig):
        pod = await Pod.start(rig)
        other, _ = await pod.join("c2", "sh", "-c", "exit 9")
        await pod.task.Wait(WaitRequest(id="c2"), timeout=20)
        await pod.kill_shim()
        assert (other / "address").read_text() == rig.address
        if not with_start:  # as containerd marks a container that it adds without a `start`
            (other / "sandbox").write_text("c1")
    reply = await delete(rig, pod.first)
    assert (reply.pid, reply.exit_status) == (rig.sink.events[0].pid, 137)
    names = ["create", "start", "create", "start", *([] if with_start else ["exit c2"])]
    assert rig.sink.names() == names


async def test_a_shim_started_again_tells_first_what_the_last_one_could_not(rig: Rig) -> None:
    with away(rig):
        _, bundle, _ = await live_unheard(rig)
        await kill_daemon(rig)
        for state in rig.runc_root.glob("*/*"):
            await trio.run_process(
                ["runc", "--root", str(state.parent), "delete", "--force", state.name]
            )
        task = await rig.start(bundle)
        created = await rig.run(task, bundle)
    with trio.fail_after(20 * PATIENCE):
        while len(rig.sink.names()) < len(LIFE) + 2:
            await trio.sleep(0.01)
    assert rig.sink.names()[: len(LIFE) + 2] == [*LIFE, "create", "start"]
    assert rig.sink.events[len(LIFE)].pid == created.pid


async def test_while_the_shim_lives_delete_tells_nothing_twice(rig: Rig) -> None:
    with away(rig):
        _, bundle, _ = await live_unheard(rig)
        journal = bundle / "events.journal"
        assert journal.stat().st_size > 0
        await delete(rig, bundle)
        assert journal.stat().st_size > 0
    await rig.sink.wait_for("exit c1")
    assert rig.sink.names() == LIFE


def check_order(rig: Rig, *, deleted: bool = True) -> None:
    oracle = Oracle(NAMESPACE)
    for envelope in rig.sink.envelopes:
        oracle.tell(envelope)
    oracle.finish(deleted=deleted)
