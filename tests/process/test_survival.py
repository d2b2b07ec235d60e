"""A killed daemon is replaced: its containers run on, and its manager notices nothing."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from grpclib.exceptions import GRPCError

from shim.api import process_pb2
from shim.api.task_pb2 import (
    PauseRequest,
    PidsRequest,
    ResizePtyRequest,
    ResumeRequest,
    ShutdownRequest,
    StateRequest,
)
from tests.process.driven import groups, verdict
from tests.process.rig import wait_gone
from tests.process.survival import (
    COUNT,
    daemon_of,
    exec_until_term,
    numbers,
    run_counting,
    run_read,
)
from tests.process.test_oom import Commanded
from tests.process.test_pods import pod
from tests.stdio.conftest import read_all, read_until
from tests.stdio.whole.client import Streams, close_stdin

if TYPE_CHECKING:
    from tests.process.rig import Rig
    from tests.process.survival import Start

pytestmark = pytest.mark.cold  # the fork server is the test's own


def terminal(config: dict[str, Any]) -> None:
    config["process"]["terminal"] = True


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_container_runs_on_and_a_wait_returns_its_true_exit(
    rig: Rig, survivors: Start, number: int
) -> None:
    shim, pid, out = await run_read(rig, survivors)
    begin = await read_until(out, 6)
    exits = []

    async def wait() -> None:
        exits.append((await shim.wait("c1")).exit_status)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await shim.replace(number)
        state = await shim.task.State(StateRequest(id="c1"), timeout=5)
        assert (state.pid, state.status) == (pid, process_pb2.RUNNING)
        begin += await read_until(out, 100)
        assert not exits
        await shim.kill("c1", number=signal.SIGTERM)
    assert exits == [7]
    deleted = await shim.delete("c1")
    assert (deleted.pid, deleted.exit_status) == (pid, 7)
    assert numbers(begin + await read_all(out)) > 30
    await verdict(rig, shim.oracle, "c1")
    assert rig.sink.names() == ["create", "start", "exit c1", "delete"]


async def test_an_exit_without_a_daemon_is_true(rig: Rig, survivors: Start) -> None:
    shim, pid = await run_counting(rig, survivors)
    exec_pid = await exec_until_term(shim, "e1", 3)
    await trio.sleep(0.2)
    os.kill(await daemon_of(shim.task), signal.SIGKILL)
    os.kill(exec_pid, signal.SIGTERM)
    await wait_gone([exec_pid])
    os.kill(pid, signal.SIGTERM)
    assert (await shim.wait("c1", "e1")).exit_status == 3
    assert (await shim.wait("c1")).exit_status == 7
    rig.track(await daemon_of(shim.task))
    await shim.delete("c1", "e1")
    await shim.delete("c1")
    await verdict(rig, shim.oracle, "c1")


async def test_execs_of_all_states_go_on(rig: Rig, survivors: Start) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    shim = await survivors(bundle)
    await shim.run(bundle)
    streams = Streams(rig, "e")
    out, writer = streams.reader(), None
    await shim.add("c1", "added", "sh", "-c", "exit 4")
    pid = await shim.exec(
        "c1", "running", "sh", "-c", "cat; exit 5", **streams.fields("stdin", "stdout")
    )
    writer = streams.writer()
    os.write(writer.number, b"before ")
    assert await read_until(out, 7) == b"before "
    await shim.exec("c1", "over", "sh", "-c", "exit 6")
    assert (await shim.wait("c1", "over")).exit_status == 6
    await shim.replace()
    listed = await shim.task.Pids(PidsRequest(id="c1"), timeout=5)
    assert pid in [process.pid for process in listed.processes]
    assert (await shim.wait("c1", "over")).exit_status == 6
    await shim.delete("c1", "over")
    await shim.start("c1", "added")
    assert (await shim.wait("c1", "added")).exit_status == 4
    os.write(writer.number, b"after")
    assert await read_until(out, 5) == b"after"
    writer.close()
    await shim.task.CloseIO(close_stdin("c1", "running"), timeout=5)
    assert (await shim.wait("c1", "running")).exit_status == 5
    assert await read_all(out) == b""
    await shim.life_of_exec("c1", "later", 9)
    await shim.end("c1")
    await verdict(rig, shim.oracle, "c1")


async def test_a_terminal_stays_open_and_can_be_resized(rig: Rig, survivors: Start) -> None:
    streams = Streams(rig, "c1")
    out = streams.reader()
    script = "echo ready; while read line; do stty size; echo got $line; done; exit 5"
    bundle = rig.bundle("c1", "sh", "-c", script, change=terminal)
    shim = await survivors(bundle)
    await shim.run(bundle, terminal=True, **streams.fields("stdin", "stdout"))
    writer = streams.writer()
    assert await read_until(out, 7) == b"ready\r\n"
    await shim.replace()
    await shim.task.ResizePty(ResizePtyRequest(id="c1", width=90, height=40), timeout=5)
    os.write(writer.number, b"one\n")
    assert await read_until(out, 21) == b"one\r\n40 90\r\ngot one\r\n"
    await shim.replace()
    os.write(writer.number, b"\x04")
    assert (await shim.wait("c1")).exit_status == 5
    await shim.delete("c1")
    await verdict(rig, shim.oracle, "c1")


async def test_a_created_and_a_stopped_container_stay_so(rig: Rig, survivors: Start) -> None:
    bundle = rig.bundle("c1", "sh", "-c", "exit 3")
    shim = await survivors(bundle)
    request = StateRequest(id="c1")
    pid = await shim.create(bundle)
    await shim.replace()
    state = await shim.task.State(request, timeout=5)
    assert (state.status, state.pid) == (process_pb2.CREATED, pid)
    await shim.start("c1")
    assert (await shim.wait("c1")).exit_status == 3
    await shim.replace()
    state = await shim.task.State(request, timeout=5)
    assert (state.status, state.exit_status) == (process_pb2.STOPPED, 3)
    assert (await shim.delete("c1")).exit_status == 3
    await verdict(rig, shim.oracle, "c1")


async def test_a_paused_container_can_be_resumed_after_it(rig: Rig, survivors: Start) -> None:
    shim, _ = await run_counting(rig, survivors)
    await shim.task.Pause(PauseRequest(id="c1"), timeout=20)
    await shim.replace()
    state = await shim.task.State(StateRequest(id="c1"), timeout=5)
    assert state.status == process_pb2.PAUSED
    await shim.task.Resume(ResumeRequest(id="c1"), timeout=20)
    assert await shim.end("c1", signal.SIGTERM) == 7
    await verdict(rig, shim.oracle, "c1")
    assert rig.sink.names() == ["create", "start", "paused", "resumed", "exit c1", "delete"]


async def test_nothing_is_left_on_the_host_after_the_last_container(
    rig: Rig, survivors: Start
) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    shim = await survivors(bundle)
    await shim.run(bundle)
    await shim.replace()
    await shim.end("c1")
    last = await daemon_of(shim.task)
    await shim.task.Shutdown(ShutdownRequest(id="c1"), timeout=5)
    await wait_gone([last])
    assert not groups(rig)


async def test_each_oom_kill_is_published_once_also_without_a_daemon(
    rig: Rig, survivors: Start
) -> None:
    container = Commanded(rig, "c1")
    shim = await survivors(container.bundle)
    await container.run(shim.task)
    await container.run_out_of_memory()
    await shim.replace()
    await container.run_out_of_memory()
    os.kill(await daemon_of(shim.task), signal.SIGKILL)
    await container.run_out_of_memory()
    rig.track(await daemon_of(shim.task))
    await shim.end("c1")
    await rig.sink.wait_for("delete", "c1")
    ooms = ["oom"] * 3
    assert rig.sink.names() == ["create", "start", *ooms, "exit c1", "delete"]


async def test_the_containers_of_a_pod_go_on_together(rig: Rig, survivors: Start) -> None:
    first = rig.bundle("c1", "sh", "-c", COUNT, change=pod)
    second = rig.bundle("c2", "sh", "-c", COUNT, change=pod)
    shim = await survivors(first)
    await shim.run(first)
    await survivors(second)
    await shim.run(second)
    await shim.replace()
    third = rig.bundle("c3", "sh", "-c", "exit 4", change=pod)
    await survivors(third)
    await shim.run(third)
    assert (await shim.wait("c3")).exit_status == 4
    await shim.replace()
    for id_ in ("c1", "c2"):
        await shim.kill(id_, number=signal.SIGTERM)
        assert (await shim.wait(id_)).exit_status == 7
    for id_ in ("c1", "c2", "c3"):
        await shim.delete(id_)
    await verdict(rig, shim.oracle, "c1", "c2", "c3")


async def test_no_kill_at_any_time_loses_anything(rig: Rig, survivors: Start) -> None:
    """Whole lives of execs, while the daemon is killed several times a second."""
    shim, _, out = await run_read(rig, survivors)
    read: list[bytes] = []

    async def read_out() -> None:
        read.append(await read_all(out))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_out)
        async with shim.killed(0.4, seed=1) as kills:
            number = interrupted = 0
            while kills.count < 8:
                number += 1
                try:
                    await shim.life_of_exec("c1", f"e{number}", number % 100)
                except GRPCError as exc:
                    if "was interrupted" not in (exc.message or ""):
                        raise
                    # Its program may have run, so it is not run again.
                    interrupted += 1
                    await shim.delete("c1", f"e{number}")
            assert await shim.end("c1", signal.SIGTERM) == 7
    assert numbers(read[0]) > 100
    assert interrupted < number / 2
    await verdict(rig, shim.oracle, "c1")
    assert not groups(rig)
