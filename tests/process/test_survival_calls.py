"""A daemon is killed while it serves a call: the call is completed once, or fails clearly."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from grpclib.exceptions import GRPCError

from shim.api import process_pb2
from shim.api.task_pb2 import (
    CheckpointTaskRequest,
    PauseRequest,
    ResumeRequest,
    StateRequest,
    UpdateTaskRequest,
)
from tests.e2e.waiting import PATIENCE
from tests.process.driven import groups, verdict
from tests.process.rig import RESOURCES_URL, alive
from tests.process.steps import wait_path
from tests.process.survival import daemon_of
from tests.stdio.conftest import read_all
from tests.stdio.whole.client import Streams, close_stdin

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.process.rig import Rig
    from tests.process.survival import Start, Survivor

pytestmark = pytest.mark.cold  # the fork server is the test's own

# Whether the runtime waits for the test before its work or after it.
BEFORE = 'wait_for_go; exec runc "$@"'
AFTER = 'runc "$@"; code=$?; wait_for_go; exit $code'


# A runtime that needs no criu: to restore a container, it runs it.
RESTORING = """case " $* " in *" restore "*)
    left=$#
    while [ $left -gt 0 ]; do
        left=$((left - 1)); word=$1; shift
        case "$word" in
        restore) set -- "$@" run;;
        --image-path | --work-path) left=$((left - 1)); shift;;
        *) set -- "$@" "$word";;
        esac
    done;;
esac
exec runc "$@\""""


class Gate:
    """A runtime that waits in one command, for the first time it is run."""

    def __init__(self, rig: Rig, verb: str, work: str) -> None:
        self.began, self._go = rig.root / "began", rig.root / "go"
        wait = f"touch {self.began}; while [ ! -e {self._go} ]; do sleep 0.01; done"
        self.path = rig.wrapper(
            "gate",
            f"""wait_for_go() {{ {wait}; }}
case " $* " in *" {verb} "*) {work};; esac
exec runc "$@\"""",
        )

    async def kill_daemon(self, shim: Survivor, pid: int) -> None:
        """Kill the daemon ``pid`` while the runtime waits, then let that go on."""
        await wait_path(self.began)
        os.kill(pid, signal.SIGKILL)
        self._go.touch()
        shim.rig.track(await daemon_of(shim.task))


async def interrupted(shim: Survivor, gate: Gate, call: Callable[[], Awaitable[Any]]) -> Any:
    """Return the result of ``call``, during which the daemon is killed."""
    results: list[Any] = []

    async def run() -> None:
        results.append(await call())

    before = await daemon_of(shim.task)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await gate.kill_daemon(shim, before)
    assert await daemon_of(shim.task) != before
    return results[0]


async def finish(shim: Survivor, code: int = 137) -> None:
    """End the container, and check all events."""
    if code == 137:
        await shim.kill("c1")
    assert (await shim.wait("c1")).exit_status == code
    await shim.delete("c1")
    await verdict(shim.rig, shim.oracle, "c1")
    assert not groups(shim.rig)


@pytest.fixture(params=[BEFORE, AFTER], ids=["before", "after"])
def work(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_a_create_is_done_again_and_its_reader_misses_nothing(
    rig: Rig, survivors: Start, work: str
) -> None:
    gate = Gate(rig, "create", work)
    streams = Streams(rig, "c1")
    out = streams.reader()
    bundle = rig.bundle("c1", "sh", "-c", "echo output; exit 3")
    shim = await survivors(bundle)
    options = rig.options(binary_name=gate.path)
    read: list[bytes] = []

    async def read_out() -> None:
        # As a manager, which reads from when the shim has opened the fifo.
        await wait_path(gate.began)
        read.append(await read_all(out))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_out)
        pid = await interrupted(
            shim,
            gate,
            lambda: shim.create(bundle, options=options, **streams.fields("stdout")),
        )
        assert alive(pid)
        await shim.start("c1")
    await finish(shim, 3)
    assert read == [b"output\n"]


async def test_a_start_is_completed(rig: Rig, survivors: Start, work: str) -> None:
    gate = Gate(rig, "start", work)
    bundle = rig.bundle("c1", "sh", "-c", "echo run >>/runs; sleep 1000")
    (rig.rootfs() / "runs").unlink(missing_ok=True)
    shim = await survivors(bundle)
    pid = await shim.create(bundle, options=rig.options(binary_name=gate.path))
    assert await interrupted(shim, gate, lambda: shim.start("c1")) == pid
    state = await shim.task.State(StateRequest(id="c1"), timeout=5)
    assert state.status == process_pb2.RUNNING
    await finish(shim)
    assert (rig.rootfs() / "runs").read_text() == "run\n"


async def test_a_container_that_waits_to_be_restored_has_its_streams(
    rig: Rig, survivors: Start
) -> None:
    streams = Streams(rig, "c1")
    out = streams.reader()
    bundle = rig.bundle("c1", "sh", "-c", "echo begin; cat; exit 3")
    shim = await survivors(bundle)
    await create_to_restore(shim, bundle, rig.wrapper("restoring", RESTORING), streams)
    writer = streams.writer()
    os.write(writer.number, b"input")
    for _ in range(2):
        await shim.replace()
    writer.close()
    read: list[bytes] = []

    async def read_out() -> None:
        read.append(await read_all(out))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_out)  # sees no end before the process has written
        await shim.start("c1")
        await shim.task.CloseIO(close_stdin("c1"), timeout=5)
    await finish(shim, 3)
    assert read == [b"begin\ninput"]


async def test_a_container_that_waits_to_be_restored_leaves_no_stream_when_it_is_deleted(
    rig: Rig, survivors: Start
) -> None:
    streams = Streams(rig, "c1")
    out = streams.reader()
    shim = await survivors(bundle := rig.bundle("c1", "true"))
    await create_to_restore(shim, bundle, rig.wrapper("restoring", RESTORING), streams)
    await shim.replace()
    await shim.delete("c1")
    with trio.fail_after(5 * PATIENCE):
        assert await read_all(out) == b""


async def test_a_restore_is_done_again_with_its_streams(
    rig: Rig, survivors: Start, work: str
) -> None:
    gate = Gate(rig, "restore", work.replace("runc", rig.wrapper("restoring", RESTORING)))
    streams = Streams(rig, "c1")
    out = streams.reader()
    shim = await survivors(bundle := rig.bundle("c1", "sh", "-c", "cat; exit 3"))
    await create_to_restore(shim, bundle, gate.path, streams)
    await interrupted(shim, gate, lambda: shim.start("c1"))
    writer = streams.writer()
    os.write(writer.number, b"input")
    writer.close()
    await shim.task.CloseIO(close_stdin("c1"), timeout=5)
    await finish(shim, 3)
    assert await read_all(out) == b"input"


async def create_to_restore(shim: Survivor, bundle: Path, runtime: str, streams: Streams) -> None:
    """Create a container that Start restores by ``runtime`` from a checkpoint."""
    options = shim.rig.options(binary_name=runtime)
    fields = streams.fields("stdin", "stdout")
    assert await shim.create(bundle, options=options, checkpoint="/images", **fields) == 0


async def test_an_exec_is_followed_and_runs_once(rig: Rig, survivors: Start, work: str) -> None:
    gate = Gate(rig, "exec", work)
    bundle = rig.bundle("c1", "sleep", "1000")
    (rig.rootfs() / "runs").unlink(missing_ok=True)
    shim = await survivors(bundle)
    await shim.run(bundle, options=rig.options(binary_name=gate.path))
    streams = Streams(rig, "e1")
    out = streams.reader()
    script = "echo run >>/runs; until test -e /end; do usleep 9000; done; echo output; exit 6"
    await shim.add("c1", "e1", "sh", "-c", script, **streams.fields("stdout"))
    await interrupted(shim, gate, lambda: shim.start("c1", "e1"))
    (rig.rootfs() / "end").touch()
    assert (await shim.wait("c1", "e1")).exit_status == 6
    assert await read_all(out) == b"output\n"
    await shim.delete("c1", "e1")
    await finish(shim)
    assert (rig.rootfs() / "runs").read_text() == "run\n"


async def test_a_delete_is_completed(rig: Rig, survivors: Start, work: str) -> None:
    gate = Gate(rig, "delete", work)
    bundle = rig.bundle("c1", "sh", "-c", "exit 4")
    shim = await survivors(bundle)
    await shim.run(bundle, options=rig.options(binary_name=gate.path))
    await shim.wait("c1")
    deleted = await interrupted(shim, gate, lambda: shim.delete("c1"))
    assert deleted.exit_status == 4
    await verdict(rig, shim.oracle, "c1")
    assert not groups(rig)


async def test_a_pause_and_a_resume_are_completed(rig: Rig, survivors: Start, work: str) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    shim = await survivors(bundle)
    pausing = Gate(rig, "pause", work)
    await shim.run(bundle, options=rig.options(binary_name=pausing.path))
    request = PauseRequest(id="c1")
    await interrupted(shim, pausing, lambda: shim.task.Pause(request, timeout=60))
    assert (await shim.task.State(StateRequest(id="c1"))).status == process_pb2.PAUSED
    pausing.began.unlink()
    (rig.root / "go").unlink()
    resuming = Gate(rig, "resume", work)  # in place of the first
    resume = ResumeRequest(id="c1")
    await interrupted(shim, resuming, lambda: shim.task.Resume(resume, timeout=60))
    assert (await shim.task.State(StateRequest(id="c1"))).status == process_pb2.RUNNING
    await finish(shim)
    assert rig.sink.names() == ["create", "start", "paused", "resumed", "exit c1", "delete"]


async def test_an_update_is_completed(rig: Rig, survivors: Start, work: str) -> None:
    gate = Gate(rig, "update", work)
    bundle = rig.bundle("c1", "sleep", "1000")
    shim = await survivors(bundle)
    await shim.run(bundle, options=rig.options(binary_name=gate.path))
    limits = AnyMessage(type_url=RESOURCES_URL, value=b'{"pids": {"limit": 77}}')
    request = UpdateTaskRequest(id="c1", resources=limits)
    await interrupted(shim, gate, lambda: shim.task.Update(request, timeout=60))
    assert "77" in {(group / "pids.max").read_text().strip() for group in limited(rig)}
    await finish(shim)


def limited(rig: Rig) -> list[Path]:
    return [group for group in groups(rig) if (group / "pids.max").exists()]


async def test_a_sigkill_is_sent_again(rig: Rig, survivors: Start, work: str) -> None:
    gate = Gate(rig, "kill", work)
    bundle = rig.bundle("c1", "sleep", "1000")
    shim = await survivors(bundle)
    await shim.run(bundle, options=rig.options(binary_name=gate.path))
    await shim.task.Pause(PauseRequest(id="c1"), timeout=20)  # only the runtime can send it then
    await interrupted(shim, gate, lambda: shim.kill("c1"))
    assert (await shim.wait("c1")).exit_status == 137
    await shim.delete("c1")
    await verdict(rig, shim.oracle, "c1")


async def test_another_signal_that_may_have_arrived_is_not_sent_again(
    rig: Rig, survivors: Start, work: str
) -> None:
    gate = Gate(rig, "kill", work)
    bundle = rig.bundle("c1", "sleep", "1000")
    shim = await survivors(bundle)
    await shim.run(bundle, options=rig.options(binary_name=gate.path))
    await shim.task.Pause(PauseRequest(id="c1"), timeout=20)
    await refused(shim, gate, "signal 28 may have been sent", lambda: shim.kill("c1", number=28))
    await shim.task.Resume(ResumeRequest(id="c1"), timeout=20)
    await finish(shim)


async def test_a_checkpoint_fails_when_its_runtime_has_ended_and_the_container_runs_on(
    rig: Rig, survivors: Start
) -> None:
    """A repeated one would disturb it, and be disturbed."""
    ended = rig.root / "ended"
    gate = Gate(rig, "checkpoint", f"wait_for_go; sleep 0.3; touch {ended}; exit 1")
    bundle = rig.bundle("c1", "sleep", "1000")
    shim = await survivors(bundle)
    await shim.run(bundle, options=rig.options(binary_name=gate.path))
    request = CheckpointTaskRequest(id="c1", path=str(rig.root / "image"))
    await refused(
        shim,
        gate,
        "the checkpoint was interrupted",
        lambda: shim.task.Checkpoint(request, timeout=60),
    )
    assert ended.exists()
    assert (await shim.task.State(StateRequest(id="c1"))).status == process_pb2.RUNNING
    await finish(shim)


async def refused(
    shim: Survivor, gate: Gate, reason: str, call: Callable[[], Awaitable[Any]]
) -> None:
    """Make ``call``, during which the daemon is killed; it fails for ``reason``."""

    async def fail() -> None:
        with pytest.raises(GRPCError, match=reason):
            await call()

    await interrupted(shim, gate, fail)
