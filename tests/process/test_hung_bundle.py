"""A bundle on a disk that hangs: exit records, events and the action delete."""

from __future__ import annotations

import re
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api.task_pb2 import (
    DeleteRequest,
    KillRequest,
    StartRequest,
    WaitRequest,
)
from shim.events.journal import is_waiting
from shim.records import read_exit
from tests.e2e.waiting import PATIENCE
from tests.frozen import freezable_disk
from tests.process.hung import answers, soon
from tests.process.steps import kill_daemon
from tests.process.test_delete import delete
from tests.process.test_durable import away, run_exec
from tests.process.test_members import Pod

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from tests.process.rig import Rig

pytestmark = pytest.mark.e2e


async def test_with_a_hung_bundle_disk_an_exit_is_told_within_seconds(rig: Rig) -> None:
    pod = await Pod.start(rig)
    with freezable_disk(rig.root / "image", rig.root / "c2") as disk:
        script = "while ! [ -e /go ]; do sleep 0.02; done; exit 7"
        made = rig.bundle("template", "sh", "-c", script)
        (disk.path / "config.json").write_bytes((made / "config.json").read_bytes())
        await rig.run(pod.task, disk.path)
        disk.freeze()
        before = time.monotonic()
        (rig.rootfs() / "go").touch()
        for number in range(3):
            await answers(rig, pod.task, "c1", number)
        ended = await pod.task.Wait(WaitRequest(id="c2"), timeout=20)
        assert ended.exit_status == 7
        await rig.sink.wait_for("exit c2", "c2")
        assert time.monotonic() - before < 8 * PATIENCE
        assert read_exit(str(disk.path)) is None
        disk.thaw()
        with trio.fail_after(10 * PATIENCE):
            while read_exit(str(disk.path)) is None:
                await trio.sleep(0.01)
        await pod.task.Delete(DeleteRequest(id="c2"), timeout=20)
        await rig.end()


async def test_with_a_hung_bundle_disk_events_go_on_from_memory(rig: Rig) -> None:
    """The disk is that of the bundle the shim was started for, which has the journal."""
    with freezable_disk(rig.root / "image", rig.root / "c1") as disk:
        made = rig.bundle("template", "sleep", "1000")
        (disk.path / "config.json").write_bytes((made / "config.json").read_bytes())
        task = await rig.start(disk.path)
        await rig.run(task, disk.path)
        await rig.sink.wait_for("start")
        other = rig.bundle("c2", "sleep", "1000")
        await rig.run(task, other)
        disk.freeze()
        for number in range(2):
            await answers(rig, task, "c2", number)
        await task.Kill(KillRequest(id="c2", signal=9), timeout=5)
        with soon("Wait"):
            await task.Wait(WaitRequest(id="c2"), timeout=5)
        await rig.sink.wait_for("exit c2", "c2")
        disk.thaw()
        await task.Kill(KillRequest(id="c1", signal=9), timeout=5)
        await rig.sink.wait_for("exit c1", "c1")
        assert (disk.path / "events.journal").exists()
        await rig.end()


async def test_with_the_first_bundle_on_a_hung_disk_other_containers_can_be_deleted(
    rig: Rig,
) -> None:
    """That bundle has the cleanup records of the others."""
    with freezable_disk(rig.root / "image", rig.root / "c1") as disk:
        made = rig.bundle("template", "sleep", "1000")
        (disk.path / "config.json").write_bytes((made / "config.json").read_bytes())
        task = await rig.start(disk.path)
        for bundle in (disk.path, rig.bundle("c2", "true"), rig.bundle("c3", "sleep", "1000")):
            await rig.run(task, bundle)
        await task.Wait(WaitRequest(id="c2"), timeout=5)
        disk.freeze()

        async def fails() -> None:
            request = rig.create_request(rig.bundle("c4", "/no/such/program"))
            with pytest.raises(GRPCError, match="no such file"):
                await task.Create(request, timeout=30)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(task.Delete, DeleteRequest(id="c2"), timeout=30))
            nursery.start_soon(fails)
            for number in range(3):
                await answers(rig, task, "c3", number)
        disk.thaw()
        await rig.end()


async def test_calls_for_a_bundle_on_a_hung_disk_hold_up_no_other_container(rig: Rig) -> None:
    pod = await Pod.start(rig)
    with freezable_disk(rig.root / "image", rig.root / "disk") as disk:
        config = (rig.bundle("template", "sleep", "1000") / "config.json").read_bytes()
        bundles = [disk.path / id_ for id_ in ("c2", "c3", "restored")]
        for bundle in bundles:
            bundle.mkdir()
            (bundle / "config.json").write_bytes(config)
        task = pod.task
        await rig.run(task, bundles[0])
        await run_exec(rig, task, "c2", "ended", "exit 3")
        await task.Exec(rig.exec_request("c2", "added", "true"), timeout=5)
        request = rig.create_request(bundles[2])
        request.checkpoint = str(rig.root / "image of criu")
        await task.Create(request, timeout=20)
        disk.freeze()

        async def fails(call: Awaitable[object]) -> None:
            with pytest.raises(GRPCError, match="check the disk") as caught:
                await call
            assert caught.value.status is Status.DEADLINE_EXCEEDED

        before = time.monotonic()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails, task.Create(rig.create_request(bundles[1]), timeout=30))
            exec_ = rig.exec_request("c2", "late", "true")
            nursery.start_soon(fails, task.Exec(exec_, timeout=30))
            start = StartRequest(id="c2", exec_id="added")
            nursery.start_soon(fails, task.Start(start, timeout=30))
            start = StartRequest(id="restored")
            nursery.start_soon(fails, task.Start(start, timeout=30))
            delete_ = DeleteRequest(id="c2", exec_id="ended")
            nursery.start_soon(partial(task.Delete, delete_, timeout=30))
            for number in range(3):
                await answers(rig, task, "c1", number)
        assert time.monotonic() - before < 10 * PATIENCE
        disk.thaw()
        assert await run_exec(rig, task, "c2", "late", "exit 4")
        await task.Start(StartRequest(id="c2", exec_id="added"), timeout=20)
        await rig.run(task, bundles[1])
        await rig.end()


async def test_delete_answers_in_time_though_the_journals_disk_hangs(rig: Rig) -> None:
    with freezable_disk(rig.root / "image", rig.root / "c1") as disk:
        made = rig.bundle("template", "sleep", "1000")
        (disk.path / "config.json").write_bytes((made / "config.json").read_bytes())
        with away(rig):
            task = await rig.start(disk.path)
            await rig.run(task, disk.path)
            await kill_daemon(rig)
        assert is_waiting(str(disk.path / "events.journal"))
        disk.freeze()
        before = time.monotonic()
        done = await delete(rig, disk.path)
        assert done.exit_status == 137
        assert time.monotonic() - before < 5 * PATIENCE
        assert "start" in rig.sink.names()
        disk.thaw()
        await rig.end()


async def test_a_start_in_a_bundle_on_a_hung_disk_fails_at_its_limit(rig: Rig) -> None:
    """The process that became the daemon writes the file address, and cannot be killed then."""
    ways = (), ("env", "TRIO_SHIM_FORKSERVER=off")
    reason = rf"cannot start the shim: no answer within \d+ s; check the disk of {rig.root}/c1, "

    async def fails(wrap: tuple[str, ...]) -> None:
        before = time.monotonic()
        done = await trio.to_thread.run_sync(
            lambda: rig.run_shim(disk.path, "-id", "c1", "start", timeout=30, wrap=wrap)
        )
        assert (done.returncode, done.stdout) == (1, b"")
        assert re.search(reason, done.stderr.decode())
        assert time.monotonic() - before < 10 + 5 * PATIENCE

    with freezable_disk(rig.root / "image", rig.root / "c1") as disk:
        made = rig.bundle("template", "true")
        (disk.path / "config.json").write_bytes((made / "config.json").read_bytes())
        disk.freeze()
        async with trio.open_nursery() as nursery:
            for wrap in ways:
                nursery.start_soon(fails, wrap)
        disk.thaw()
        await rig.end()
