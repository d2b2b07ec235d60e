"""A runtime that is stuck: which calls wait for it, how long, and the clean-up after it."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api.task_pb2 import (
    ConnectRequest,
    PauseRequest,
    PidsRequest,
    StateRequest,
    StatsRequest,
    WaitRequest,
)
from shim.cgroup.find import cgroup_of
from shim.cgroup.v1 import CgroupV1
from tests.e2e.waiting import PATIENCE, wait_until
from tests.process.driven import Driven, groups, verdict
from tests.process.rig import Rig, alive, wait_gone

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from google.protobuf.any_pb2 import Any as AnyMessage

pytestmark = pytest.mark.e2e

# Stuck before it does anything, and after it has done everything.
BEFORE = """case " $* " in *" {verb} "*) echo $$ > {mark}; exec sleep 30;; esac
exec runc "$@\""""
AFTER = """case " $* " in *" {verb} "*) runc "$@"; echo $$ > {mark}; exec sleep 30;; esac
exec runc "$@\""""
# runc itself, stopped while its child is in the container already and its pid
# file is not written: only runc can wait for that child.
# Where the stop comes too late, it is taken back.
INSIDE = """case " $* " in *" {verb} "*) me=$$
for word; do case $previous in --pid-file) file=$word;; esac; previous=$word; done
(until pgrep -P $me '^runc:.2:INIT' > {mark}.pid || [ -e $file ]; do :; done
kill -STOP $me; if [ -e $file ]; then kill -CONT $me; else echo $me > {mark}; fi) & ;; esac
exec runc "$@\""""


async def wait_stuck(mark: Path) -> int:
    """Wait until the wrapper is stuck, and return its pid."""
    with trio.fail_after(20 * PATIENCE):
        while not mark.exists() or not mark.read_text():
            await trio.sleep(0.01)
    return int(mark.read_text())


async def in_vain(call: Callable[[], Awaitable[object]], *statuses: Status) -> None:
    with pytest.raises(GRPCError) as caught:
        await call()
    assert caught.value.status in statuses, caught.value


@pytest.mark.parametrize("script", [BEFORE, INSIDE, AFTER], ids=["before", "inside", "after"])
async def test_a_stuck_exec_does_not_keep_its_init_from_ending(rig: Rig, script: str) -> None:
    mark = rig.root / "stuck"
    wrapper = rig.wrapper("wrapper", script.format(verb="exec", mark=mark))
    bundle = rig.bundle("c1", "sleep", "1000")
    driven = Driven(rig, await rig.start(bundle))
    await driven.run(bundle, options=rig.options(binary_name=wrapper))
    refused: list[Status] = []
    returned: list[str] = []

    async def start(exec_id: str) -> None:
        try:
            await driven.start("c1", exec_id)
        except GRPCError as exc:
            refused.append(exc.status)
        returned.append(exec_id)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            exec_id = f"e{number}"
            await driven.add("c1", exec_id, "sleep", "1000")
            nursery.start_soon(start, exec_id)
            with trio.fail_after(20):
                while exec_id not in returned and not mark.exists():
                    await trio.sleep(0.01)
            if mark.exists():
                break
        assert not refused
        stuck = await wait_stuck(mark)
        await driven.kill("c1")
        with trio.fail_after(10):
            assert (await driven.wait("c1")).exit_status == 137
    assert refused == [Status.FAILED_PRECONDITION]
    await driven.delete("c1", exec_id)
    assert (await driven.delete("c1")).exit_status == 137
    await verdict(rig, driven.oracle, "c1")
    assert_nothing_left(rig, stuck)


def assert_nothing_left(rig: Rig, *pids: int) -> None:
    """Neither runtime, nor state, nor cgroup, nor zombie."""
    assert not [pid for pid in pids if alive(pid)]
    assert not list(rig.runc_root.glob("*/*"))
    assert not groups(rig)
    children = Path(f"/proc/{rig.daemons[0]}/task/{rig.daemons[0]}/children")
    # An orphan may have ended just now, and its SIGCHLD be under way.
    wait_until("the daemon has reaped its children", lambda: not children.read_text(), 5)


@pytest.mark.parametrize("verb", ["create", "exec"])
async def test_readers_answer_at_once_while_the_runtime_is_stuck(rig: Rig, verb: str) -> None:
    """Half of each hundred within 50 ms; none takes a second, also on a busy machine."""
    mark = rig.root / "stuck"
    options = rig.options(binary_name=rig.wrapper("wrapper", BEFORE.format(verb=verb, mark=mark)))
    bundle = rig.bundle("c1", "sleep", "1000")
    driven = Driven(rig, await rig.start(bundle))
    task = driven.task
    await driven.run(bundle, **({"options": options} if verb == "exec" else {}))
    for id_ in ("c2", "c3"):
        await driven.run(rig.bundle(id_, "true"))
    await driven.wait("c2")
    await driven.add("c1", "e1", "true")
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "State": lambda: task.State(StateRequest(id="c1")),
        "State of the exec": lambda: task.State(StateRequest(id="c1", exec_id="e1")),
        "Pids": lambda: task.Pids(PidsRequest(id="c1")),
        "Stats": lambda: task.Stats(StatsRequest(id="c1")),
        "Wait": lambda: task.Wait(WaitRequest(id="c2")),
        "Connect": lambda: task.Connect(ConnectRequest(id="c1")),
    }
    took: dict[str, list[float]] = {name: [] for name in calls}
    async with trio.open_nursery() as nursery:
        if verb == "exec":
            nursery.start_soon(in_vain, partial(driven.start, "c1", "e1"), Status.UNKNOWN)
        else:
            create = partial(driven.create, rig.bundle("c4", "true"), options=options)
            nursery.start_soon(in_vain, create, Status.UNKNOWN)
        stuck = await wait_stuck(mark)
        for name, call in calls.items():
            for _ in range(100):
                before = trio.current_time()
                await call()
                took[name].append(trio.current_time() - before)
        assert alive(stuck)
        os.kill(stuck, signal.SIGKILL)
    assert {n: t for n, t in took.items() if statistics.median(t) >= 0.05} == {}
    assert {n: max(t) for n, t in took.items() if max(t) >= 1} == {}


@pytest.mark.parametrize("verb", ["create", "start", "exec", "pause", "delete"])
async def test_a_runtime_that_never_returns_ends_at_the_limit(
    rig: Rig, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIO_SHIM_RUNTIME_TIMEOUT", "1")
    mark, well = rig.root / "stuck", rig.root / "well"
    script = f'[ -e {well} ] && exec runc "$@"\n' + BEFORE.format(verb=verb, mark=mark)
    options = rig.options(binary_name=rig.wrapper("wrapper", script))
    bundle = rig.bundle("c1", "sleep", "1000")
    driven = Driven(rig, await rig.start(bundle))
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "create": lambda: driven.create(bundle, options=options),
        "start": lambda: driven.start("c1"),
        "exec": lambda: driven.exec("c1", "e1", "true"),
        "pause": lambda: driven.task.Pause(PauseRequest(id="c1"), timeout=60),
        "delete": lambda: driven.delete("c1"),
    }
    if verb != "create":
        await driven.create(bundle, options=options)
        if verb != "start":
            await driven.start("c1")
        if verb == "delete":
            await driven.kill("c1")
            await driven.wait("c1")
    with trio.fail_after(20):
        await in_vain(calls[verb], Status.DEADLINE_EXCEEDED)
    stuck = await wait_stuck(mark)
    assert not alive(stuck)
    well.touch()
    if verb == "create":
        # Nothing was left of it, so that it can be repeated.
        assert_nothing_left(rig, stuck)
        await calls[verb]()
    if verb not in ("start", "delete"):
        await driven.kill("c1")
        await driven.wait("c1")
    await driven.delete("c1")
    await verdict(rig, driven.oracle, "c1")
    assert_nothing_left(rig, stuck)


@pytest.mark.parametrize("verb", ["create", "exec"])
async def test_a_callers_deadline_ends_a_stuck_runtime_and_the_rest_goes_on(
    rig: Rig, verb: str
) -> None:
    mark, well = rig.root / "stuck", rig.root / "well"
    script = f'[ -e {well} ] && exec runc "$@"\n' + BEFORE.format(verb=verb, mark=mark)
    options = rig.options(binary_name=rig.wrapper("wrapper", script))
    bundle = rig.bundle("c1", "sleep", "1000")
    driven = Driven(rig, await rig.start(bundle))
    if verb == "create":
        request = rig.create_request(bundle, options=options)
        await in_vain(lambda: driven.task.Create(request, timeout=2), Status.DEADLINE_EXCEEDED)
    else:
        await driven.run(bundle, options=options)
        await driven.add("c1", "e1", "true")
        late = Status.DEADLINE_EXCEEDED
        await in_vain(lambda: driven.start("c1", "e1", timeout=2), late)
    stuck = await wait_stuck(mark)
    await wait_gone([stuck], 15)
    well.touch()
    if verb == "create":
        with trio.fail_after(15):
            while not await try_create(driven, bundle, options):
                await trio.sleep(0.02)
        await driven.start("c1")
    else:
        await driven.delete("c1", "e1")
    await driven.life_of_exec("c1", "e2", 4)
    await driven.end("c1")
    await verdict(rig, driven.oracle, "c1")
    assert_nothing_left(rig, stuck)


async def try_create(driven: Driven, bundle: Path, options: AnyMessage) -> bool:
    """Create; False while the id is still taken by the attempt before."""
    try:
        await driven.create(bundle, options=options)
    except GRPCError as exc:
        if exc.status is not Status.ALREADY_EXISTS:
            raise
        return False
    return True


@pytest.mark.skipif(Path("/sys/fs/cgroup/cgroup.controllers").exists(), reason="cgroup v1 only")
@pytest.mark.parametrize("everybody", [False, True])
async def test_a_container_somebody_else_froze_can_be_killed(rig: Rig, everybody: bool) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    driven = Driven(rig, await rig.start(bundle))
    pid = await driven.run(bundle)
    cgroup = cgroup_of(pid)
    assert isinstance(cgroup, CgroupV1)
    state = Path(cgroup.directories["freezer"]) / "freezer.state"
    try:
        with trio.fail_after(30):
            for attempt in count(1):
                # Again, and thawed now and then, as runc does: a process may not freeze else.
                state.write_text("FROZEN")
                if state.read_text() == "FROZEN\n":
                    break
                if attempt % 50 == 0:
                    state.write_text("THAWED")
                await trio.sleep(0.01)
        await driven.kill("c1", all=everybody)
        with trio.fail_after(10):
            assert (await driven.wait("c1")).exit_status == 137
    finally:
        with contextlib.suppress(OSError):
            state.write_text("THAWED")
    await driven.delete("c1")
    await verdict(rig, driven.oracle, "c1")
